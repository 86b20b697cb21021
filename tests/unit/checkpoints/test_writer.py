"""Files written behind the training: what cannot be written is kept, and holds nothing else up."""

import errno
import threading

import pytest

from utils.checkpoints.async_writer import AsyncFileWriter
from utils.errors import UserError


class Disk:
    """Writes files, except those with the given names."""

    def __init__(self, *refused):
        self.refused = set(refused)
        self.files = {}
        self.written = []

    def file(self, name, content):
        def write():
            if name in self.refused:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.files[name] = content
            self.written.append(content)

        return {name: write}


def test_what_cannot_be_written_is_kept_and_blocks_nothing_but_its_own(log_capture):
    disk = Disk("5header")
    with AsyncFileWriter() as writer:
        writer.submit(disk.file("5header", 5) | disk.file("5backbone", 5), disk.file("checkpoint", 5))
        writer.wait()
        assert disk.files == {"checkpoint": 5}  # where the backbone exists, its header does too
        assert log_capture.messages == [
            "5header: could not be written (No space left on device); training continues, the next save tries again"
        ]
        writer.submit(disk.file("checkpoint", 6))
        writer.wait()
        assert disk.files == {"checkpoint": 6}
        disk.refused.clear()
    assert disk.files == {"checkpoint": 6, "5header": 5, "5backbone": 5}


def test_training_does_not_wait_for_a_write():
    may, written = threading.Event(), []
    with AsyncFileWriter() as writer:
        writer.submit({"file": lambda: written.append(may.wait(60))})
        assert not written  # back, and the write has not ended
        may.set()
    assert written == [True]


def test_an_old_checkpoint_that_waits_gives_way_to_the_new_one():
    disk = Disk("checkpoint")
    with AsyncFileWriter() as writer:
        for step in (1, 2, 3):
            writer.submit(disk.file(f"{step}backbone", step), disk.file("checkpoint", step))
        writer.wait()
        disk.refused.clear()
    assert disk.written == [1, 2, 3, 3]  # three backbones, and of the checkpoint the last


def test_what_never_gets_through_is_an_error_in_the_end():
    disk = Disk("5header", "checkpoint")
    message = "5header, 5backbone, checkpoint: could not be written; free some disk space"
    with pytest.raises(UserError, match=message), AsyncFileWriter() as writer:
        writer.submit(disk.file("5header", 5) | disk.file("5backbone", 5), disk.file("checkpoint", 5))
    assert disk.files == {}


def test_another_error_is_not_made_one_of_these():
    with pytest.raises(ZeroDivisionError), AsyncFileWriter() as writer:
        writer.submit(Disk("file").file("file", 1))
        raise ZeroDivisionError
