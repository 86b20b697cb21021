"""Labels of large record files are checked while the run trains: what is found, when, and by whom."""

import os
import re
import signal
import struct
import threading
import time
from functools import partial

import numpy as np
import pytest

from tests.helpers.doctor_helpers import make_config, run_checks
from tests.helpers.faces import write_data
from tests.helpers.training import CPU, small_config, spawn_ranks, train_small
from utils.datasets import face_dataset
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.recordio import label_cache
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import IMAGE_HEADER
from utils.datasets.training_data import load_training_data
from utils.doctor.table import FAIL
from utils.errors import UserError, run_cli

STEPS = ["num_epoch=1", "max_steps=3", "eval_step=1", "save_step=1", "keep=9"]  # of five steps an epoch


@pytest.fixture(autouse=True)
def all_files_are_large(monkeypatch, tmp_path):
    make_files_large(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr(label_cache, "MIN_RECORDS", 1)


def make_files_large(folder, setenv=os.environ.__setitem__):
    label_cache.MIN_RECORDS = 1
    setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def set_label(folder, index: int, label: float):
    """Changes the label of an image in the record file."""
    dataset = FaceDataset(folder)
    key = dataset.keys[index]
    at = int(dataset.location(index).split()[-1]) + 8
    header, _ = dataset.reader.read_image(key)
    with (folder / "train.rec").open("r+b") as file:
        file.seek(at + (4 if header.flag == 0 else IMAGE_HEADER.size))
        file.write(struct.pack("<f", label))


class Gate:
    """Holds the reading of labels until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.opened, read = threading.Event(), IndexedRecordReader.labels_of_complete

        def wait_and_read(reader, keys, on_chunk):
            assert threading.current_thread() is not threading.main_thread()
            end = time.monotonic() + 60
            while not self.is_open() and time.monotonic() < end:
                on_chunk()
                time.sleep(0.001)
            return read(reader, keys, on_chunk)

        monkeypatch.setattr(IndexedRecordReader, "labels_of_complete", wait_and_read)

    def is_open(self) -> bool:
        return self.opened.is_set()

    def open_at(self, at: int, step: int) -> dict[str, float]:
        """Opens at a step, in place of a verification."""
        if step == at:
            self.opened.set()
        return {}


def last_image(config) -> int:
    """Returns the index of an image of the last batch of the first epoch."""
    return int(np.random.default_rng([config.seed, 0]).permutation(40)[-1])


def remembered(folder) -> int:
    """Returns the number of files of labels in the cache."""
    return len([*(folder / "cache").glob("pocketnet/labels-*.npy")])


def check_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "label_check"]


def test_a_run_trains_while_its_labels_are_read(tmp_path, data, monkeypatch, log_capture):
    gate = Gate(monkeypatch)
    config = small_config(tmp_path, data, *STEPS)
    step, _ = train_small(config, verify=partial(gate.open_at, 2))
    assert step == 3 and remembered(tmp_path) == 1 and not check_threads()
    assert "Data: 40 images of 4 identities" in log_capture.text
    assert (
        "checked while the run trains" in log_capture.text and "labels of all 40 images are right" in log_capture.text
    )
    assert not FaceDataset(data).labels_take_long


def test_a_wrong_label_ends_a_run_that_trains(tmp_path, data, monkeypatch, capfd):
    config = small_config(tmp_path, data, *STEPS)
    set_label(data, last_image(config), 7.0)
    verify = partial(Gate(monkeypatch).open_at, 1)
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: train_small(config, verify=verify))
    assert end.value.code == 2
    label = r"record \d+ at byte \d+: label 7 is not one of the 4 classes \(0 to 3\)"
    line = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"error: .*train\.rec: {label}; set num_classes=8 if the data is right", line)
    assert not check_threads() and (tmp_path / "out/checkpoint.1.pth").is_file()
    with pytest.raises(UserError, match="label 7 is not one of the 4 classes"):  # the next start knows them
        load_training_data(config, CPU)


def test_a_run_waits_for_the_check_before_it_ends(tmp_path, data, monkeypatch):
    config = small_config(tmp_path, data, *STEPS)
    set_label(data, last_image(config), 7.0)
    monkeypatch.setattr(Gate, "is_open", lambda _: (tmp_path / "out/3backbone.pth").is_file())
    Gate(monkeypatch)
    with pytest.raises(UserError, match="label 7 is not one of the 4 classes"):
        train_small(config)


def test_a_wrong_label_in_a_batch_is_named_before_the_check_finds_it(tmp_path, data, monkeypatch):
    set_label(data, 21, 7.0)
    Gate(monkeypatch)
    config = small_config(tmp_path, data, "batch_size=40", "num_epoch=1")
    with pytest.raises(UserError, match=r"record 22 at byte \d+: label 7 is not one of the 4 classes \(0 to 3\)"):
        train_small(config)
    assert not check_threads()


def test_a_stop_while_labels_are_read(tmp_path, data, monkeypatch):
    Gate(monkeypatch)  # stays closed

    def stop(step: int) -> dict[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(SystemExit) as end:
        train_small(small_config(tmp_path, data, *STEPS), verify=stop)
    assert end.value.code == 128 + signal.SIGTERM
    assert not check_threads() and not remembered(tmp_path)


def test_an_unexpected_failure_is_not_taken_for_right_labels(tmp_path, data, monkeypatch):
    def fail(*_):
        raise RuntimeError("unexpected")

    monkeypatch.setattr(IndexedRecordReader, "labels_of_complete", fail)
    with pytest.raises(RuntimeError, match="unexpected"):
        train_small(small_config(tmp_path, data, *STEPS))


def test_remembered_labels_are_checked_before_training(tmp_path, data):
    assert len(FaceDataset(data).label_values)
    loader, _ = load_training_data(small_config(tmp_path, data), CPU)
    assert "label_values" in vars(loader.dataset)
    (data / "property").write_text("3,112,112")
    with pytest.raises(UserError, match="label 3 is not one of the 3 classes"):
        load_training_data(small_config(tmp_path, data), CPU)


@pytest.mark.parametrize("property_", ["", "3,112,112"])
def test_labels_are_read_first_where_only_they_tell_the_number_of_classes(tmp_path, data, property_):
    (data / "property").unlink() if not property_ else (data / "property").write_text(property_)
    config = small_config(tmp_path, data, *(["num_classes=4"] if property_ else []))
    loader, num_classes = load_training_data(config, CPU)
    assert num_classes == 4 and "label_values" in vars(loader.dataset)


def test_a_config_of_more_classes_than_the_files_have(tmp_path, data):
    with pytest.raises(UserError, match=r"num_classes: 9, but .* holds 4 identities"):
        load_training_data(small_config(tmp_path, data, "num_classes=9"), CPU)


def test_the_index_is_read_once(tmp_path, data, monkeypatch):
    reads, read = [], face_dataset.IndexedRecordReader
    monkeypatch.setattr(face_dataset, "IndexedRecordReader", lambda *args: reads.append(1) or read(*args))
    load_training_data(small_config(tmp_path, data), CPU)
    assert len(reads) == 1


def test_the_doctor_checks_all_labels(tmp_path, data):
    set_label(data, 39, 7.0)
    (check,) = run_checks(make_config(tmp_path, data), "data")
    assert check.state == FAIL and "label 7 is not one of the 4 classes" in check.found


def test_all_ranks_end_where_rank_0_finds_a_wrong_label(tmp_path, data):
    set_label(data, 39, 7.0)
    spawn_ranks(_train_on_wrong_labels, tmp_path / "ranks", data)
    found = [(tmp_path / f"ranks/{rank}").read_text() for rank in range(2)]
    assert "label 7 is not one of the 4 classes" in found[0] and found[1] == "SystemExit: 2"


def _train_on_wrong_labels(world, folder, data):
    make_files_large(folder)
    config = small_config(folder, data, "num_epoch=2", "batch_size=4", "save_step=1")
    try:
        train_small(config, world=world)
    except (UserError, SystemExit) as end:
        (folder / str(world.rank)).write_text(f"{type(end).__name__}: {end}")
