"""Training data: what is delivered, in which order, and what is refused."""

import multiprocessing
import pickle
import shutil
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from easydict import EasyDict

from tests.conftest import GOLDEN, encode, face, write_data
from utils.dataset import EpochSampler, FaceDataset, load_training_data
from utils.distributed import World
from utils.errors import UserError
from utils.images import mirror, normalise
from utils.loader import Loader
from utils.recordio import Header, IndexedRecordWriter, pack

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
    loader = Loader(dataset, EpochSampler(len(dataset), batch, seed=5), workers)
    return [(images.numpy().copy(), labels.tolist()) for e in range(epochs) for images, labels, _ in loader.epoch(e)]


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
    records = [pack(Header(2, np.array([i, 9.0]), 0, 0), encode(face(i, rng))) for i in range(5)]
    dataset = FaceDataset(write_images(tmp_path, records))
    assert len(dataset) == 5 and dataset.count_classes() == 5
    assert [dataset[i][1] for i in range(5)] == [0, 1, 2, 3, 4]


def test_colours_are_red_green_blue(tmp_path):
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 0] = 255
    dataset = FaceDataset(write_images(tmp_path, [pack(Header(0, 0.0, 0, 0), encode(red, ".png"))]))
    assert dataset[0][0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_deliver_the_same_batches_as_none(tiny_data, workers):
    dataset = FaceDataset(tiny_data)
    alone, shared = delivered(dataset, 0), delivered(dataset, workers)
    assert len(alone) == 2 * (40 // 8)
    for (images, labels), (other_images, other_labels) in zip(alone, shared, strict=True):
        assert labels == other_labels
        np.testing.assert_array_equal(images, other_images)


def test_an_unfinished_epoch_does_not_disturb_the_next(tiny_data):
    loader = Loader(FaceDataset(tiny_data), EpochSampler(40, 8), workers=1)
    next(loader.epoch(0))
    second = [labels.tolist() for _, labels, _ in loader.epoch(1)]
    assert second == [labels for _, labels in delivered_labels(tiny_data, epoch=1)]


def delivered_labels(folder, epoch):
    loader = Loader(FaceDataset(folder), EpochSampler(40, 8), workers=0)
    return [(None, labels.tolist()) for _, labels, _ in loader.epoch(epoch)]


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
    good = pack(Header(0, 0.0, 0, 0), encode(face(0, rng)))
    bad = pack(Header(0, 0.0, 0, 0), encode(face(0, rng)[:50]) if payload is None else payload)
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
        assert done.get(timeout=60) == 5
    finally:
        process.kill()
        process.join()


def test_a_truncated_jpeg_is_an_error_and_never_a_grey_image(tmp_path):
    jpeg = encode(face(0, np.random.default_rng(0)))
    for length in (len(jpeg) // 4, len(jpeg) // 2, len(jpeg) - 200):
        dataset = FaceDataset(write_images(tmp_path, [pack(Header(0, 0.0, 0, 0), jpeg[:length])], first_key=1))
        with pytest.raises(UserError, match="record 1 at byte 0"):
            dataset[0]


@pytest.mark.parametrize("label", [4.0, -1.0, 1.5, float("nan")])
def test_labels_that_are_no_class_are_refused_before_training(tmp_path, label):
    image = encode(face(0, np.random.default_rng(0)))
    records = [pack(Header(0, value, 0, 0), image) for value in (0.0, 3.0, label)]
    dataset = FaceDataset(write_images(tmp_path, records))
    with pytest.raises(UserError, match=r"train\.rec: record 2 at byte \d+: label .* 4 classes"):
        dataset.check_labels(4)


def config_for(folder, **fields) -> EasyDict:
    plain = {"rec": str(folder), "num_classes": 0, "num_image": 0, "batch_size": 8, "workers": 0, "seed": 0}
    return EasyDict({**plain, "on_bad_image": "error", "timeout": 0, **fields})


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
        Loader(FaceDataset(tiny_data), EpochSampler(40, 8), workers=1)


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
    out = mirror(images, flags)
    assert torch.equal(out[flags], images[flags].flip(2)) and torch.equal(out[~flags], images[~flags])
