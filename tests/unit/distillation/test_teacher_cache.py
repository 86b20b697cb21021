"""The cache of teacher embeddings: correct values, teacher and data, with concurrent and interrupted writers."""

import errno
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch

from backbones.build import build_backbone
from config import load_config
from tests.helpers.paths import ROOT
from utils.checkpoints.weights import save_weights
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.training_data import load_training_data
from utils.distillation.cache import TeacherCache, fill_cache, teacher_fingerprint
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets, open_caches
from utils.distillation.task import DistillTask
from utils.distillation.teacher import NetworkTeacher
from utils.distributed.process_group import World, to_device
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.training.engine import train

CPU = World(0, 1, torch.device("cpu"))
SMALL = ["channel=4", "n_layers=4", "embedding_size=16", "batch_size=8", "workers=0", "eval_step=0", "save_initial=0"]


class CountingTeacher(NetworkTeacher):
    """Counts the images it embeds."""

    asked = 0

    def __call__(self, images):
        self.asked += len(images)
        return super().__call__(images)


def config_of(folder, data, *overrides):
    places = [f"rec={data}", f"output={folder / 'out'}", f"log_dir={folder / 'logs'}", f"teacher_pth={folder}"]
    cache = ["teacher_network=PocketNet", "teacher_global_step=7", f"teacher_cache={folder / 'cache'}"]
    return load_config(ROOT / "config" / "config_demo.py", [*SMALL, *places, *cache, *overrides])


def cache_of(config, path, data) -> TeacherCache:
    return open_caches(config, [path], data)[path]


@pytest.fixture
def teacher_file(tmp_path):
    torch.manual_seed(7)
    save_weights(tmp_path / "7backbone.pth", build_backbone(load_config(ROOT / "config" / "config_demo.py", SMALL)))
    return tmp_path / "7backbone.pth"


def a_run(config, teacher_file, cached: bool):
    """Returns the losses of each step, the teacher, and its targets."""
    loader, num_classes = load_training_data(config, CPU)
    teacher = CountingTeacher(build_backbone(config), CPU)
    torch.manual_seed(0)
    backbone, header = to_device(build_backbone(config), CPU), ArcFace(16, num_classes)
    files = [teacher_file] * config.num_epoch
    targets = TeacherTargets(teacher, files)
    if cached:
        caches = open_caches(config, files, loader.dataset)
        targets = CachedTeacherTargets(teacher, files, caches, loader.dataset, CPU, batch_size=3)
    losses, asked = [], []

    class Recording(DistillTask):
        def __call__(self, batch):
            named = super().__call__(batch)
            losses.append({name: value.item() for name, value in named.items()})
            return named

        def on_epoch_start(self, epoch):
            super().on_epoch_start(epoch)
            asked.append(teacher.asked)

    train(Recording(backbone, header, targets, config.w), loader, config, CPU)
    return losses, asked, teacher, targets


def test_the_loss_with_the_cache_is_the_loss_without_it(tmp_path, tiny_data, teacher_file):
    # A rate so low that the student of all steps is the same, and only the teacher's rounding differs.
    config = config_of(tmp_path, tiny_data, "num_epoch=3", "lr=1e-9")
    plain, _, without, _ = a_run(config, teacher_file, cached=False)
    cached, *_ = a_run(config, teacher_file, cached=True)
    filled, _, never, _ = a_run(config, teacher_file, cached=True)
    assert without.asked == 3 * 5 * 8 and never.asked == 0
    assert len(plain) == len(cached) == 15
    for a, b, c in zip(plain, cached, filled, strict=True):
        assert b["ArcLoss"] == pytest.approx(a["ArcLoss"], rel=1e-5)
        assert b["MSE"] == pytest.approx(a["MSE"], rel=2**-10)
        assert c == pytest.approx(b, rel=1e-5)


def test_every_image_is_put_to_the_teacher_once_each_way(tmp_path, tiny_data, teacher_file):
    config = config_of(tmp_path, tiny_data, "num_epoch=4", "batch_size=9")  # drops images at the end of each epoch
    n = len(FaceDataset(tiny_data))
    _, asked, teacher, targets = a_run(config, teacher_file, cached=True)
    assert asked[0] == 0 and asked[1:] == [2 * n] * 3 and teacher.asked == 2 * n and n % 9
    assert targets.cache.filled() == 1
    _, asked, teacher, _ = a_run(config, teacher_file, cached=True)  # the next run embeds nothing
    assert teacher.asked == 0


def test_filled_ahead_it_holds_the_teachers_embeddings_of_both_ways(tmp_path, tiny_data, teacher_file):
    config = config_of(tmp_path, tiny_data)
    data = FaceDataset(tiny_data)
    teacher = NetworkTeacher(build_backbone(config), CPU)
    teacher.load(teacher_file)
    cache = cache_of(config, teacher_file, data)
    assert fill_cache(cache, teacher, data, CPU, batch=5, workers=1) == len(data)
    assert fill_cache(cache, teacher, data, CPU, batch=5) == 0
    for index in (0, len(data) - 1):
        pixels = torch.from_numpy(data[index][0]).permute(2, 0, 1)[None].float() / 127.5 - 1
        for side, images in enumerate((pixels, pixels.flip(3))):
            embedding, known = cache.read(np.array([index]), np.array([bool(side)]))
            assert known.all() and np.abs(embedding - teacher(images).numpy()).max() < 1e-3


def test_an_interrupted_fill_resumes_and_a_torn_embedding_is_not_read(tmp_path):
    cache = TeacherCache(tmp_path, "7backbone", {"teacher": "a"}, 10, 16)
    rows = np.random.default_rng(0).standard_normal((10, 16)).astype(np.float16)
    indices, flipped = np.arange(10), np.arange(10) % 2 == 0
    cache.write(indices[:6], flipped[:6], rows[:6])
    again = TeacherCache(tmp_path, "7backbone", {"teacher": "a"}, 10, 16)
    read, known = again.read(indices, flipped)
    assert known.tolist() == [True] * 6 + [False] * 4 and np.array_equal(read[:6], rows[:6])
    assert not again.read(indices, ~flipped)[1].any() and again.filled() == 0
    again.write(indices, ~flipped, rows)
    assert again.filled() == 0.6 and again.missing(slice(0, 10)).tolist() == [6, 7, 8, 9]
    again.embeddings[2, int(flipped[2]), 5] += 1  # half of it was written when the power went
    assert cache.read(indices, flipped)[1].tolist() == [True, True, False, True, True, True] + [False] * 4
    assert again.missing(slice(0, 10)).tolist() == [2, 6, 7, 8, 9] and again.missing(slice(3, 7)).tolist() == [6]


def test_a_zero_embedding_differs_from_a_missing_one(tmp_path):
    cache = TeacherCache(tmp_path, "t", {}, 3, 4)
    assert not cache.read(np.arange(3), np.zeros(3, bool))[1].any()
    cache.write(np.arange(2), np.zeros(2, bool), np.zeros((2, 4), np.float16))
    assert cache.read(np.arange(3), np.zeros(3, bool))[1].tolist() == [True, True, False]


def _write_every(folder, resume_point, n, barrier):
    cache = TeacherCache(folder, "7backbone", {"teacher": "a"}, n, 16)
    barrier.wait(60)
    for index in [*range(resume_point, n, 3), *range(0, n, 7)]:  # rows beside another's, and rows that all write
        for side in (False, True):
            cache.write(np.array([index]), np.array([side]), np.full((1, 16), index + side / 2, np.float16))
    os._exit(0)  # as if killed: no file is closed


def test_several_processes_lose_and_tear_nothing(tmp_path):
    n = 1000
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_write_every, args=(tmp_path, resume_point, n, barrier)) for resume_point in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 3  # one cache for all
    cache = TeacherCache(tmp_path, "7backbone", {"teacher": "a"}, n, 16)
    for side in (False, True):
        rows, known = cache.read(np.arange(n), np.full(n, side))
        assert known.all() and np.array_equal(rows[:, 3], (np.arange(n) + side / 2).astype(np.float16))


def test_shares_of_several_processes_fill_all(tmp_path, tiny_data, teacher_file):
    config = config_of(tmp_path, tiny_data)
    data = FaceDataset(tiny_data)
    teacher = NetworkTeacher(build_backbone(config), CPU)
    cache = cache_of(config, teacher_file, data)
    done = [fill_cache(cache, teacher, data, World(rank, 3, torch.device("cpu")), 4) for rank in range(3)]
    assert sum(done) == len(data) and min(done) > 0 and cache.filled() == 1


# ------------------------------------------------------------------------------------------- which teacher and data


def test_another_teacher_or_other_data_have_a_cache_of_their_own(tmp_path, tiny_data, teacher_file):
    def path_of(folder, *overrides):
        return cache_of(config_of(tmp_path, folder, *overrides), teacher_file, FaceDataset(folder)).path

    first = path_of(tiny_data)
    assert path_of(tiny_data, "teacher_precision=bf16") != first
    assert path_of(tiny_data, "teacher_genotype=softmax_cifar10") != first
    assert path_of(tiny_data, "channel=8") != first  # the student's is the teacher's where it has none of its own
    assert path_of(tiny_data, "channel=8", "teacher_channel=4") == first
    iresnet = path_of(tiny_data, "teacher_network=iresnet18")
    assert path_of(tiny_data, "teacher_network=resnet18", "channel=8") == iresnet != first  # another student
    copied = tmp_path / "copied"
    shutil.copytree(tiny_data, copied)
    assert path_of(copied) == first  # the same data, moved
    record = bytearray((copied / "train.rec").read_bytes())
    record[len(record) // 2] ^= 1
    (copied / "train.rec").write_bytes(record)  # of the same size, one bit another
    assert path_of(copied) != first
    torch.manual_seed(8)
    save_weights(teacher_file, build_backbone(config_of(tmp_path, tiny_data)))  # the same name, other weights
    assert path_of(tiny_data) != first


def test_the_description_of_a_cache_is_checked(tmp_path):
    cache = TeacherCache(tmp_path, "7backbone", {"teacher_sha256": "ab"}, 3, 4)
    described = cache.path.with_name(cache.path.name + ".json")
    log_capture = json.loads(described.read_text())
    assert (log_capture["teacher_sha256"], log_capture["images"], log_capture["embedding_size"]) == ("ab", 3, 4)
    described.write_text(described.read_text().replace("ab", "cd"))
    with pytest.raises(UserError, match=r"7backbone-.*\.json: is of another teacher or other data; delete it"):
        TeacherCache(tmp_path, "7backbone", {"teacher_sha256": "ab"}, 3, 4)


def test_a_file_that_was_cut_short_is_filled_again_and_a_longer_one_refused(tmp_path):
    cache = TeacherCache(tmp_path, "t", {}, 8, 16)
    rows = np.ones((8, 16), np.float16)
    cache.write(np.arange(8), np.zeros(8, bool), rows)
    path = cache.path.with_name(cache.path.name + ".f16")
    del cache
    os.truncate(path, 16 * 2 * 2 * 4)
    _, known = TeacherCache(tmp_path, "t", {}, 8, 16).read(np.arange(8), np.zeros(8, bool))
    assert known.tolist() == [True] * 4 + [False] * 4
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"t-.*\.f16: 516 bytes, should be 512: it is damaged; delete it"):
        TeacherCache(tmp_path, "t", {}, 8, 16)


def test_a_folder_that_cannot_hold_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"teacher_cache: cannot keep .* GiB in .*file \(File exists\); name another"):
        TeacherCache(tmp_path / "file", "t", {}, 8, 16)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot keep .* \(No space left on device\); name another folder"):
        TeacherCache(tmp_path / "new", "t", {}, 8, 16)


def test_a_file_system_that_cannot_reserve_space_will_do(tmp_path, monkeypatch):
    def unserved(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unserved)
    cache = TeacherCache(tmp_path, "t", {}, 8, 16)
    cache.write(np.arange(8), np.zeros(8, bool), np.ones((8, 16), np.float16))
    assert TeacherCache(tmp_path, "t", {}, 8, 16).read(np.arange(8), np.zeros(8, bool))[1].all()


def test_fingerprints_see_large_files_by_samples_and_the_weights_beside_an_onnx_file(tmp_path, tiny_data, monkeypatch):
    from utils import filesystem as files

    fingerprint = FaceDataset(tiny_data).fingerprint
    monkeypatch.setattr(files, "_CHUNK", 64)  # 256 of them are less than the file
    monkeypatch.setattr(files, "_SAMPLES", 16)
    assert FaceDataset(tiny_data).fingerprint != fingerprint
    (tmp_path / "t.onnx").write_bytes(b"graph")
    alone = teacher_fingerprint(tmp_path / "t.onnx")
    (tmp_path / "t.onnx.cache").mkdir()
    assert teacher_fingerprint(tmp_path / "t.onnx") == alone
    (tmp_path / "t.onnx.data").write_bytes(b"weights")
    assert teacher_fingerprint(tmp_path / "t.onnx") != alone
