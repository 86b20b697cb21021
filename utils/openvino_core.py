"""OpenVINO's CPU runtime, which evaluation, alignment and exported networks use. It is optional."""

import importlib.util
import sys
import threading
from functools import cache
from typing import Any

# "f32": by default OpenVINO computes in bfloat16 on CPUs that support it. With pinning, several processes would share
# the first cores.
FLOAT32_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
_first_use = threading.Lock()


def is_installed() -> bool:
    """Returns whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which would report the import and create ~/intel."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    return openvino


def openvino_core() -> Any:
    """Returns this process's openvino.Core, the same one for every caller and thread.

    On CPUs with AMX a Core gives the thread in which it first compiles a network a stack for signal handlers, and takes
    it back when it is deleted. With two of them, or one deleted in another thread, the thread is left with a stack in
    freed memory, and the next signal ends the process. A Core that is never deleted avoids that.
    """
    with _first_use:  # two threads at once would wait for each other for ever, see _create_core
        return _create_core()


@cache
def _create_core() -> Any:
    openvino = import_openvino()
    # OpenVINO fills a table of types at the first use. Of two threads that do so at once, one holds Python's lock and
    # waits for the table, the other fills the table and waits for the lock.
    openvino.Type.f32.to_dtype()
    return openvino.Core()
