"""One OpenVINO core for a process: its networks come and go, in any thread, and signals still reach their handlers."""

import sys
import threading

import pytest

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from utils.openvino_core import is_installed, openvino_core

pytestmark = pytest.mark.skipif(not is_installed(), reason="no OpenVINO")

# Freed memory is unmapped at once: MALLOC_MMAP_THRESHOLD_ keeps blocks of that many bytes out of the heap.
SIGNALS = """
import gc, os, signal, threading
import numpy as np
from backbones.build import build_backbone
from config import load_config
from data.alignment.blazeface import BlazeFace
from eval.inference.openvino import OpenVinoRuntime

received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
config = load_config("config/config_demo.py", ["channel=4", "n_layers=4", "embedding_size=32"])
networks = [OpenVinoRuntime(build_backbone(config)), BlazeFace(), BlazeFace()]
del networks[0]
gc.collect()
thread = threading.Thread(target=networks.clear)  # the last ones are deleted in another thread
thread.start()
thread.join()
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
BlazeFace().find(np.zeros((200, 200, 3), np.uint8))
os.kill(os.getpid(), signal.SIGUSR1)
print(len(received))
"""


def test_signals_reach_their_handlers_after_networks_are_deleted():
    """On CPUs with AMX, cores of their own left this process with a signal stack in freed memory."""
    done = run_command(ROOT, sys.executable, "-c", SIGNALS, MALLOC_MMAP_THRESHOLD_="16384")
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_threads_share_the_core():
    cores = []
    threads = [threading.Thread(target=lambda: cores.append(openvino_core())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(core) for core in cores} == {id(openvino_core())}
