"""Writes a page that compares photos in the browser: python -m deploy.web OUT --model net.onnx [--far 1e-3]

OUT gets static files: the page, onnxruntime-web, the face detector and the network, an .onnx file of
python -m deploy.export. Photos are compared on the device that shows the page and never leave it.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config import CommandParser, path_argument
from data.alignment.blazeface import find_networks
from deploy.arguments import add_threshold_arguments
from deploy.networks.exported import ExportedNetwork, open_exported
from deploy.networks.thresholds import Threshold, choose_threshold
from deploy.publishing.folders import is_taken, write_folder
from utils.errors import UserError, run_cli
from utils.filesystem import path_exists

PAGE = Path(__file__).resolve().parent / "page"
SOURCES = (
    "index.html", "style.css", "page.js", "faces.js", "detector.js", "alignment.js", "images.js", "networks.js",
)  # fmt: skip
RUNTIME = "onnxruntime-web"  # npm package
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SETTINGS = "settings.json"


def main() -> None:
    """Parses the command line and writes the page."""
    parser = CommandParser("Write a page that compares photos in the browser.")
    parser.add_argument("out", type=path_argument, metavar="OUT", help="the folder to write, or an earlier page")
    parser.add_argument("--model", type=path_argument, required=True, metavar="FILE", help="an exported .onnx file")
    add_threshold_arguments(parser)
    parser.add_argument(
        "--runtime", type=path_argument, default=PAGE / "node_modules" / RUNTIME, metavar="DIR",
        help=f"the npm package {RUNTIME} (default: that of npm install --prefix deploy/page)",
    )  # fmt: skip
    args = parser.parse()
    check_output(args.out)
    try:
        files = collect_files(args)
    except OSError as error:
        raise UserError(f"{error.filename or args.model}: {error.strerror or error}") from None
    write_folder(args.out, files)
    total = sum(map(len, files.values()))
    print(f"{args.out}: {len(files)} files, {total / 1e6:.1f} MB")
    print(f"Look at it: python -m http.server --bind 127.0.0.1 --directory {args.out}, then http://localhost:8000")


def collect_files(args: argparse.Namespace) -> dict[str, bytes]:
    """Returns the contents of the files of a page by their paths in its folder. Raises UserError and OSError."""
    if args.model.suffix != ".onnx":
        raise UserError(
            f"--model {args.model}: is not an .onnx file", fix="python -m deploy.export --to onnx writes one"
        )
    network = open_exported(args.model)
    if not network.metadata.get("thresholds"):
        raise UserError(
            f"--model {args.model}: there are no thresholds in it",
            fix="evaluate the checkpoint (python eval/eval.py output=WEIGHTS), then export it again",
        )
    threshold = choose_threshold(network.metadata["thresholds"], args.far, f"--model {args.model}", args.set)
    missing = [name for name in RUNTIME_FILES if not (args.runtime / "dist" / name).is_file()]
    if missing:
        raise UserError(
            f"{args.runtime / 'dist'}: {missing[0]} is missing", fix=f"npm install --prefix {PAGE} installs {RUNTIME}"
        )
    if missing := [package for package in ("onnx", "openvino") if not find_spec(package)]:
        raise UserError(
            f"the page needs {missing[0]}", fix="pip install -r requirements.txt -r requirements-deploy.txt"
        )
    from deploy.exporting.converters.openvino_to_onnx import convert_to_onnx

    detector, mesh = find_networks()
    return (
        {name: (PAGE / name).read_bytes() for name in SOURCES}
        | {f"{RUNTIME}/{name}": (args.runtime / "dist" / name).read_bytes() for name in RUNTIME_FILES}
        | {
            "networks/detector.onnx": convert_to_onnx(detector),
            "networks/mesh.onnx": convert_to_onnx(mesh),
            "networks/network.onnx": args.model.read_bytes(),
            SETTINGS: json.dumps(make_settings(args.model, network, threshold), indent=2).encode(),
        }
    )


def check_output(out: Path) -> None:
    """Raises UserError if there is anything at the path but an earlier page."""
    is_page = all(path_exists((out / name).is_file) for name in ("index.html", SETTINGS))
    if is_taken(out) and not is_page:
        raise UserError(f"{out}: exists already, and is no earlier page", fix="name another folder, or remove it")


def make_settings(path: Path, network: ExportedNetwork, threshold: Threshold) -> dict[str, Any]:
    """Returns the content of settings.json: the input of the network, and the threshold."""
    return {
        "network": network.metadata.get("network", {}).get("net_name", path.stem),
        "embedding_size": network.embedding_size,
        "input": {
            "pixels": "uint8" if network.is_uint8 else "float32",
            "layout": "NCHW" if network.shape[0] == 3 else "NHWC",
        },
        "threshold": threshold.cosine,
        "far": threshold.far,
        "set": threshold.eval_set,
        "warning": threshold.warning,
    }


if __name__ == "__main__":
    run_cli(main)
