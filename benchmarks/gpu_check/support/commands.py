"""Commands of the project, run as their users run them, or in this process, which saves the imports."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from unittest.mock import patch

from benchmarks.gpu_check.processes import start_group


def run_command(*arguments: str, stop_at: str = "", without_gpu: bool = False) -> tuple[int, str]:
    """Runs a script of the project with this Python; returns its exit code and its output, which it also prints.

    stop_at: pattern of the line at which SIGTERM is sent. without_gpu: hides all GPUs.
    """
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if without_gpu else {})
    print("$", *arguments, flush=True)
    lines = []
    with start_group([sys.executable, *arguments], environment, subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
            if stop_at and re.search(stop_at, line):
                process.send_signal(signal.SIGTERM)
                stop_at = ""
        code = process.wait()
    return code, "".join(lines)


def run_here(main: Callable[[], None], *arguments: str) -> None:
    """Runs the main function of a command in this process. Raises what the command raises."""
    print("$", main.__module__, *arguments, flush=True)
    with patch.object(sys, "argv", [main.__module__, *arguments]):
        main()
