"""One attempt at a file: conversion, proof, and the comparison of speeds."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.exporting.formats import Conversion, Format
from deploy.exporting.network import ExportNetwork
from deploy.exporting.proof import Agreement, Prover, file_size, find_faults
from deploy.exporting.speed import BATCH, Speed, all_threads, find_slowness, time_in_turn
from utils.logs.logger import log

THIS_FILE = "this file"  # its name among the speeds


@dataclass(frozen=True)
class Trial:
    """A file with what was measured of it.

    Attributes:
        size: in bytes.
        latency: of one image with one thread; None where the file cannot be run here.
        throughput: of 32 images with all threads; None likewise.
        faults: what speaks against using it, empty if nothing does.
    """

    conversion: Conversion
    path: Path
    size: int
    agreement: Agreement
    latency: Speed | None
    throughput: Speed | None
    faults: list[str]

    def format(self) -> str:
        """Returns the figures, in lines."""
        return "\n".join([f"size: {self.size:,} bytes", self.agreement.format(), self._format_speed()])

    def _format_speed(self) -> str:
        if not self.latency or not self.throughput:
            return (
                "speed: not measured, and computed with PyTorch, not on a device: the runtime of this format does not "
                "run here"
            )
        single = ", ".join(f"{name} {1000 * self.latency.typical(name):.1f} ms" for name in self.latency.seconds)
        batch = ", ".join(f"{name} {BATCH / self.throughput.typical(name):.0f}" for name in self.throughput.seconds)
        return f"one image, one thread: {single}\n{BATCH} images, {all_threads()} threads, images a second: {batch}"


class Exporter:
    """Converts one network to files in a folder, and proves them."""

    def __init__(self, network: ExportNetwork, kind: Format, prover: Prover, folder: Path) -> None:
        self.network, self.kind, self.prover, self.folder = network, kind, prover, folder

    def convert(self, precision: str, faces: NDArray[np.uint8] | None = None, controlled: bool = False) -> Conversion:
        """Converts the network and writes the file; see `OnnxConversion` for the arguments."""
        conversion = self.kind.convert(self.network, precision, faces, controlled)
        conversion.save(self.path(precision))
        return conversion

    def path(self, precision: str) -> Path:
        """Returns the path of the file of a precision, which may not exist yet."""
        return self.folder / f"{precision}{self.kind.suffix}"

    def run(self, precision: str, max_drop: float, faces: NDArray[np.uint8] | None = None) -> Trial:
        """Converts and proves. Where int8 drops too far, accuracy control keeps sensitive layers in float.

        max_drop: of the accuracy, in percentage points. faces: (N, 112, 112, 3) to calibrate int8 with.
        """
        log.info(f"Converting to {precision}")
        conversion = self.convert(precision, faces)
        agreement = self._check(precision)
        if precision == "int8" and agreement.drop > max_drop:
            log.info(
                f"int8 drops by {agreement.drop:.2f} points: looking for layers to keep in float, which takes long"
            )
            conversion = self.convert(precision, faces, controlled=True)
            agreement = self._check(precision)
        faults = find_faults(precision, agreement, max_drop)
        latency, throughput = self._time(precision) if self.kind.runs_here else (None, None)
        for speed, what in ((latency, "one image takes"), (throughput, f"{BATCH} images take")):
            if speed and (fault := find_slowness(speed, what, THIS_FILE, self._baseline(precision))):
                faults.append(fault)
        path = self.path(precision)
        return Trial(conversion, path, file_size(path), agreement, latency, throughput, faults)

    def _baseline(self, precision: str) -> str:
        """Returns the name of the network that a precision must not be slower than."""
        return "PyTorch" if precision == "fp32" else "fp32"

    def _time(self, precision: str) -> tuple[Speed, Speed]:
        """Measures one image with one thread, and 32 with all, in turn with the baseline and PyTorch."""
        log.info("Measuring the speed")
        files = {THIS_FILE: precision}
        if precision != "fp32":
            files["fp32"] = "fp32"
            if not self.path("fp32").exists():
                self.convert("fp32")
        openers = {name: partial(self.kind.open, self.path(stored)) for name, stored in files.items()}
        backbone, images = self.prover.backbone, self.prover.images
        batch = np.resize(images, (BATCH, *images.shape[1:]))  # repeats them where there are fewer
        single = time_in_turn(backbone, openers, images[:1], 1)
        return single, time_in_turn(backbone, openers, batch, all_threads())

    def _check(self, precision: str) -> Agreement:
        log.info("Comparing with PyTorch")
        return self.prover.check(partial(self.kind.open, self.path(precision)))


def install(path: Path, out: Path) -> None:
    """Moves an exported file to its final path, in place of an earlier one. Raises OSError.

    Of OpenVINO's two files an interruption leaves the old ones, the new ones or no .xml, never a mixture.
    """
    if path.suffix == ".xml":
        out.unlink(missing_ok=True)
        path.with_suffix(".bin").replace(out.with_suffix(".bin"))
    if out.is_dir():  # an earlier .mlpackage
        out.rename(path.with_name("replaced"))
    path.replace(out)
