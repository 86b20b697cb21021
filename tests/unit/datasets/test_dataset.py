"""Training data: what is delivered, in which order, and what is refused."""

import multiprocessing
import os
import pickle
import re
import shutil
import sys
import threading
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config import require_data
from config.base import Config
from NAS.data import open_search_data
from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image, write_data
from tests.helpers.paths import GOLDEN, ROOT
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.recordio.image_keys import find_image_end, find_image_keys
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.training_data import load_training_data
from utils.datasets.transforms import hflip, normalise
from utils.distributed.process_group import World
from utils.errors import UserError

CPU = World(0, 1, torch.device("cpu"))


def write_images(folder, records: list[bytes], first_key: int = 0):
    folder.mkdir(exist_ok=True)
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key, record in enumerate(records, first_key):
            writer.write(key, record)
    return folder


def delivered(
    dataset: FaceDataset, workers: int, batch: int = 8, epochs: int = 2
) -> list[tuple[np.ndarray, list[int]]]:
    loader = SharedMemoryLoader(dataset, EpochSampler(len(dataset), batch, seed=5), workers)
    return [
        (images.numpy().copy(), labels.tolist()) for e in range(epochs) for images, labels, _ in loader.iter_epoch(e)
    ]


def test_golden_file_gives_the_pixels_and_labels_that_mxnet_read():
    dataset = FaceDataset(GOLDEN / "rec")
    expected = np.load(GOLDEN / "rec" / "expected.npz")
    images = np.empty((42, 112, 112, 3), np.uint8)
    labels = np.empty(42, np.int64)
    dataset.read_into(range(42), images, labels)
    assert len(dataset) == 42
    np.testing.assert_array_equal(labels, expected["labels"])
    # Another build of libjpeg may round a pixel differently.
    difference = np.abs(images.astype(int) - expected["pixels_rgb"])
    assert difference.max() <= 2 and difference.mean() < 0.01
    assert dataset.count_classes() == 6
    dataset.check_labels(6)


def test_plain_files_without_a_header_record(tmp_path):
    rng = np.random.default_rng(0)
    # Record 0 is an image although its label is an array, as that of a header is.
    records = [pack(RecordHeader(2, np.array([i, 9.0]), 0, 0), encode_image(draw_face(i, rng))) for i in range(5)]
    dataset = FaceDataset(write_images(tmp_path, records))
    assert len(dataset) == 5 and dataset.count_classes() == 5
    assert [dataset[i][1] for i in range(5)] == [0, 1, 2, 3, 4]


def header_record(*ends: float) -> bytes:
    return pack(RecordHeader(2, np.array(ends), 0, 0), b"")


def face_record(label: float = 0.0) -> bytes:
    return pack(RecordHeader(0, label, 0, 0), encode_image(draw_face(int(label), np.random.default_rng(0))))


def test_an_index_that_lacks_records_of_the_file_is_refused(tmp_path):
    """For each kind of header, and for a file without one."""
    folder = write_data(tmp_path / "data", identities=2, shots=5, pairs=2)
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    for left_out in ({3}, {1, 7}, {10}, {5, 6, 7}):
        (folder / "train.idx").write_text("".join(line for n, line in enumerate(lines) if n not in left_out))
        at = int(lines[min(left_out)].split()[1])
        with pytest.raises(UserError) as caught:
            FaceDataset(folder).check_labels(2)
        assert f"train.idx: the record at byte {at} of {folder}/train.rec is not in it; copy both" in str(caught.value)
        assert f"python data/reindex.py --force {folder}/train.rec" in str(caught.value)


def test_images_that_a_tool_left_out_are_counted(tmp_path, log_capture):
    """The tool that makes such files skips photos that it cannot read, after it has announced them."""
    with IndexedRecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, header_record(9, 11))
        for key in (1, 2, 4, 5, 6):
            writer.write(key, face_record(float(key > 4)))
        for key in (9, 10):
            writer.write(key, header_record(1, 9))
    fields = {"num_classes": 0, "num_image": 0, "batch_size": 2, "seed": 0, "workers": 0, "timeout": 9}
    config = config_for(tmp_path, **fields)
    assert load_training_data(config, World(0, 1, torch.device("cpu")))[1] == 2
    assert FaceDataset(tmp_path).keys.tolist() == [1, 2, 4, 5, 6]
    assert "train.idx: 3 of the images that record 0 announces are missing" in log_capture.text


def test_an_index_that_is_cut_short_is_refused(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=5, pairs=2)
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:6]))  # as a copy that was interrupted
    with pytest.raises(UserError, match=r"train\.idx: its last record is at byte \d+, but \d+ bytes of records follow"):
        FaceDataset(folder)
    (folder / "train.idx").write_text("".join(lines[:6]))
    size = int(lines[6].split()[1])
    with (folder / "train.rec").open("r+b") as file:
        file.truncate(size)  # both truncated
    with pytest.raises(UserError, match="announces 10 images, 5 of them are not in the index, which ends with key 5"):
        FaceDataset(folder)


@pytest.mark.parametrize("end", [np.nan, np.inf, -3.0, 0.0, 2.5])
def test_a_header_that_announces_no_number_of_images_is_refused(tmp_path, end):
    write_images(tmp_path, [header_record(end, end), face_record()])
    with pytest.raises(
        UserError, match=r"train\.rec: record 0 at byte 0: its label should be the end of the image keys"
    ):
        FaceDataset(tmp_path)


@pytest.mark.parametrize("end", [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3, 2**25 + 5, 2**25 + 3, 20_000_001])
@pytest.mark.parametrize("identities", [True, False])
def test_the_end_of_so_many_images_that_a_float_rounds_it(tmp_path, end, identities):
    """Only the keys near the end, because 17 million records take long."""
    ends = header_record(end, end + 3)
    rounded = float(np.frombuffer(ends, np.float32)[6])
    records = {0: ends} | {key: face_record() for key in range(end - 6, end)}
    if identities:
        records |= {key: header_record(key, key) for key in range(end, end + 3)}
    with IndexedRecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        for key, record in records.items():
            writer.write(key, record)
    with IndexedRecordReader(tmp_path / "a.rec", tmp_path / "a.idx") as reader:
        assert float(reader.read_image(0)[0].label[0]) == rounded and abs(rounded - end) in (0, 1, 2)
        assert find_image_end(reader, int(rounded)) == end


def test_17_million_keys_are_counted():
    """An index of 2^24 + 3 images, the last two of which have the same float32 number."""
    end = 2**24 + 4
    keys = np.arange(end + 2)

    class Reader:
        rec, idx = Path("a.rec"), Path("a.idx")

        def __init__(self, keys: np.ndarray) -> None:
            self.keys = keys

        def read_image(self, key: int) -> tuple[RecordHeader, bytes]:
            return RecordHeader(
                2, np.array([end - 1, end + 2], np.float32), 0, 0
            ), b"" if key == 0 or key >= end else b"image"

    assert np.float32(end - 1) == end  # rounded
    found, missing = find_image_keys(Reader(keys))
    assert found[-1] == end - 1 and missing == 0
    assert find_image_keys(Reader(np.delete(keys, [9, 2**24])))[1] == 2


def test_a_property_that_is_no_regular_file_is_named(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=2, pairs=2)
    (folder / "property").unlink()
    os.mkfifo(folder / "property")
    with pytest.raises(UserError, match=r"property: is not a regular file \(a pipe\)"):
        FaceDataset(folder).count_classes()


def with_labels(folder: Path, labels: list[float]) -> Path:
    return write_images(folder, [face_record(label) for label in labels])


def test_images_of_one_identity_are_refused(tmp_path):
    for labels in ([0.0] * 9, [7.0] * 9):
        with pytest.raises(
            UserError,
            match=rf"train\.rec: all 9 images have the label {labels[0]:g}, but training needs at least two identities",
        ):
            load_training_data(config_for(with_labels(tmp_path, labels)), CPU)


@pytest.mark.parametrize("property_", [None, "2001,112,112"])
def test_labels_with_gaps_are_warned_of(tmp_path, log_capture, property_):
    folder = with_labels(tmp_path, [0.0, 1000.0, 2000.0] * 4)
    if property_:
        (folder / "property").write_text(property_)
    assert load_training_data(config_for(folder), CPU)[1] == 2001
    assert "1998 of 2001 identities have no image, the first is label 1: the header learns nothing" in log_capture.text
    open_search_data(config_for(folder))
    assert log_capture.text.count("1998 of 2001 identities have no image") == 2


def test_identities_beyond_the_labels_are_warned_of(tmp_path, log_capture):
    folder = with_labels(tmp_path, [0.0, 1.0, 2.0] * 4)
    (folder / "property").write_text("10,112,112")
    assert load_training_data(config_for(folder), CPU)[1] == 10
    assert "7 of 10 identities have no image, the first is label 3" in log_capture.text


def test_sound_data_bring_no_warning(tiny_data, log_capture):
    load_training_data(config_for(tiny_data), CPU)
    assert [record.levelname for record in log_capture.records] == ["INFO"]


def test_more_classes_than_the_files_hold_are_refused(tiny_data, tmp_path):
    with pytest.raises(UserError) as caught:
        load_training_data(config_for(tiny_data, num_classes=85742), CPU)
    assert str(caught.value) == (
        f"config num_classes: 85742, but {tiny_data} holds 4 identities; type num_classes=0 to take the files' count, "
        "or num_classes=4"
    )
    # where property is too low, the labels count
    folder = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    (folder / "property").write_text("3,112,112")
    assert load_training_data(config_for(folder, num_classes=4), CPU)[1] == 4


def test_the_error_for_other_classes_names_the_fields_to_set(tiny_data, tmp_path):
    places = [f"rec={tiny_data}", f"output={tmp_path}", f"log_dir={tmp_path}"]
    done = run_command(ROOT, sys.executable, "train.py", "--config", "config/config_PocketNetS128.py", *places)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: config num_classes: 85742, but {tiny_data} holds 4 identities; type num_classes=0 " in done.stderr


@pytest.mark.parametrize("command", ["train.py", "train_kd.py"])
def test_a_batch_of_one_image_is_refused(tiny_data, tmp_path, command):
    fields = ["batch_size=1", f"rec={tiny_data}", f"output={tmp_path}", f"log_dir={tmp_path}"]
    fields += [f"teacher_pth={tmp_path}/teacher", "teacher_global_step=1"] * (command == "train_kd.py")
    done = run_command(ROOT, sys.executable, command, "--config", "config/config_demo.py", *fields)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: config batch_size: 1 image is too few for batch norm")


WANTED = r"training needs train\.rec, train\.idx and property \(data/README\.md\)"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["Ann/1.jpg", "Bob/1.JPG"],
            rf"there are photos \('Ann/1\.jpg'\); {WANTED}: .*data/pack\.py FOLDER OUT",
        ),
        (["1.png"], rf"there are photos \('1\.png'\); {WANTED}"),
        (["lfw.bin", "cfp_fp.bin"], rf"only verification sets \('cfp_fp\.bin, lfw\.bin'\), which eval/.* {WANTED}"),
        (["faces.rec", "faces.idx"], rf"but there is 'faces\.rec'; {WANTED}: rename it"),
        (["inner/train.rec", "inner/train.idx"], r"but FOLDER/inner has one; type rec=FOLDER/inner"),
        (["readme.txt"], rf"{WANTED}; put them there"),
        (["train.idx"], rf"{WANTED}; put them there"),
    ],
)
def test_the_error_for_other_data_names_what_is_expected_and_the_fix(tmp_path, files, message):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"^FOLDER/train\.rec: No such file: ") as caught:
        try:
            FaceDataset(tmp_path)
        except UserError as error:
            raise UserError(str(error).replace(str(tmp_path), "FOLDER")) from None
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)


def test_the_record_file_given_instead_of_its_folder(tiny_data):
    with pytest.raises(UserError, match=rf"train\.rec' is a file; name its folder: rec={tiny_data}"):
        require_data(Config(rec=str(tiny_data / "train.rec")))


def test_the_error_for_a_missing_index_names_the_fix(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=2, pairs=2)
    (folder / "train.idx").unlink()
    with pytest.raises(UserError) as caught:
        FaceDataset(folder)
    command = str(caught.value).partition("make it from the records: python ")[2]
    assert command == f"data/reindex.py {folder}"
    assert run_command(ROOT, sys.executable, *command.split()).returncode == 0
    assert len(FaceDataset(folder)) == 4


def test_colours_are_red_green_blue(tmp_path):
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 0] = 255
    dataset = FaceDataset(write_images(tmp_path, [pack(RecordHeader(0, 0.0, 0, 0), encode_image(red, ".png"))]))
    assert dataset[0][0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_deliver_the_same_batches_as_none(tiny_data, workers):
    dataset = FaceDataset(tiny_data)
    alone, shared = delivered(dataset, 0), delivered(dataset, workers)
    assert len(alone) == 2 * (40 // 8)
    for (images, labels), (other_images, other_labels) in zip(alone, shared, strict=True):
        assert labels == other_labels
        np.testing.assert_array_equal(images, other_images)


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_copies_are_made_by_a_thread_and_outlast_their_slots(tiny_data, monkeypatch, workers):
    threads, gpus = set(), []

    def pin(tensor):
        threads.add(threading.current_thread())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    dataset = FaceDataset(tiny_data)
    pinning = SharedMemoryLoader(dataset, EpochSampler(40, 2, seed=5), workers, pin=True)
    plain = SharedMemoryLoader(dataset, EpochSampler(40, 2, seed=5), workers)
    for epoch in range(2):
        kept = list(pinning.iter_epoch(epoch))  # more batches than slots
        for ours, other in zip(kept, plain.iter_epoch(epoch), strict=True):
            assert torch.equal(ours.images, other.images) and torch.equal(ours.labels, other.labels)
    assert len(kept) == 20 and len(threads) == 1 and threading.main_thread() not in threads
    assert gpus == [3]


def test_an_unfinished_epoch_does_not_disturb_the_next(tiny_data):
    loader = SharedMemoryLoader(FaceDataset(tiny_data), EpochSampler(40, 8), workers=1)
    next(loader.iter_epoch(0))
    second = [labels.tolist() for _, labels, _ in loader.iter_epoch(1)]
    assert second == [labels for _, labels in delivered_labels(tiny_data, epoch=1)]


def delivered_labels(folder, epoch):
    loader = SharedMemoryLoader(FaceDataset(folder), EpochSampler(40, 8), workers=0)
    return [(None, labels.tolist()) for _, labels, _ in loader.iter_epoch(epoch)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_each_step_of_one_common_order(world_size):
    alone = list(EpochSampler(103, 4 * world_size, seed=3))
    parts = [EpochSampler(103, 4, rank, world_size, seed=3) for rank in range(world_size)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == alone
    seen = list(chain(*alone))
    assert len(seen) == len(set(seen)) == 103 // (4 * world_size) * 4 * world_size


def test_each_epoch_and_seed_has_its_own_order():
    def order(seed, epoch):
        sampler = EpochSampler(64, 8, seed=seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"batch_size: 50 images on 2 processes.* 64"):
        EpochSampler(64, 50, 0, 2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("payload", [b"", b"\xff\xd8\xff no jpeg", None])
def test_an_unreadable_image_names_file_record_and_offset(tmp_path, payload, workers):
    rng = np.random.default_rng(0)
    good = pack(RecordHeader(0, 0.0, 0, 0), encode_image(draw_face(0, rng)))
    bad = pack(RecordHeader(0, 0.0, 0, 0), encode_image(draw_face(0, rng)[:50]) if payload is None else payload)
    dataset = FaceDataset(write_images(tmp_path, [good, bad, good, good], first_key=1))
    offset = 8 + len(good) + -len(good) % 4
    with pytest.raises(UserError, match=rf"train\.rec: record 2 at byte {offset}: .*112×112") as error:
        delivered(dataset, workers, batch=4, epochs=1)
    assert "\n" not in str(error.value)
    if payload is None:
        assert "112×50" in str(error.value)


def _after_parallel_opencv(folder, done):
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (999, 999))  # starts OpenCV's threads
    batches = delivered(FaceDataset(folder), workers=1, epochs=1)
    done.put(len(batches))


def test_workers_forked_from_a_process_with_opencv_threads_do_not_hang(tiny_data):
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    process = context.Process(target=_after_parallel_opencv, args=(tiny_data, done))
    process.start()
    try:
        assert done.get(timeout=300) == 5
    finally:
        process.kill()
        process.join()


def test_a_truncated_jpeg_is_an_error_and_never_a_grey_image(tmp_path):
    jpeg = encode_image(draw_face(0, np.random.default_rng(0)))
    for length in (len(jpeg) // 4, len(jpeg) // 2, len(jpeg) - 200):
        dataset = FaceDataset(write_images(tmp_path, [pack(RecordHeader(0, 0.0, 0, 0), jpeg[:length])], first_key=1))
        with pytest.raises(UserError, match="record 1 at byte 0"):
            dataset[0]


@pytest.mark.parametrize("label", [4.0, -1.0, 1.5, float("nan")])
def test_labels_that_are_no_class_are_refused_before_training(tmp_path, label):
    image = encode_image(draw_face(0, np.random.default_rng(0)))
    records = [pack(RecordHeader(0, value, 0, 0), image) for value in (0.0, 3.0, label)]
    dataset = FaceDataset(write_images(tmp_path, records))
    with pytest.raises(UserError, match=r"train\.rec: record 2 at byte \d+: label .* 4 classes"):
        dataset.check_labels(4)


def config_for(folder, **fields) -> Config:
    return Config(**{"rec": str(folder), "batch_size": 8, "workers": 0, "timeout": 0, **fields})


def test_counts_come_from_the_files_and_are_checked(tiny_data):
    loader, num_classes = load_training_data(config_for(tiny_data), CPU)
    assert num_classes == 4 and len(loader) == 5
    assert load_training_data(config_for(tiny_data, num_classes=4), CPU)[1] == 4
    with pytest.raises(UserError, match=r"label 3 is not one of the 3 classes.*num_classes=4"):
        load_training_data(config_for(tiny_data, num_classes=3), CPU)


def test_a_malformed_property_file_is_named(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=2, pairs=2)
    for text in (b"many,112,112", b"0,112,112", b"\xff\xfe,112", b""):
        (folder / "property").write_bytes(text)
        with pytest.raises(UserError, match="property: should read"):
            FaceDataset(folder).count_classes()
    (folder / "property").unlink()
    assert FaceDataset(folder).count_classes() == 2


def test_a_missing_record_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train\.rec: No such file"):
        FaceDataset(tmp_path)


def test_too_little_shared_memory_is_a_clear_error(tiny_data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 16))
    with pytest.raises(UserError, match=r"workers: .* shared memory .*lower workers"):
        SharedMemoryLoader(FaceDataset(tiny_data), EpochSampler(40, 8), workers=1)


def test_a_dataset_travels_to_spawned_workers(tiny_data):
    dataset = pickle.loads(pickle.dumps(FaceDataset(tiny_data)))
    assert dataset[3][1] == 0


def test_normalise_is_the_published_formula_in_channels_last():
    images = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    expected = ((images.double() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    ours = normalise(images)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_mirror_turns_the_flagged_images_left_to_right():
    images = torch.randint(0, 256, (400, 4, 6, 3), dtype=torch.uint8)
    flags = torch.arange(400) % 3 == 0
    out = hflip(images, flags)
    assert torch.equal(out[flags], images[flags].flip(2)) and torch.equal(out[~flags], images[~flags])
