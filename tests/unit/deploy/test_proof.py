"""The proof of an exported file: its faces, its figures and its verdict."""

import numpy as np
import pytest
import torch

from backbones.build import build_backbone
from deploy.exporting.calibration import N_FACES, load_calibration_faces
from deploy.exporting.proof import Agreement, Prover, find_faults, row_cosines
from deploy.exporting.speed import Speed, find_slowness, time_in_turn
from deploy.networks.exported import ExportedNetwork
from eval.comparison import Comparison
from eval.inference.embedding import TorchRuntime
from eval.inputs.sets import VerificationSet
from eval.scoring import compute_score
from tests.helpers.faces import draw_face, encode_image, write_data
from tests.helpers.networks import small_network_config
from tests.helpers.training import CPU
from utils.errors import UserError


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(1)
    return build_backbone(small_network_config()).eval()


@pytest.fixture(scope="module")
def eval_set():
    rng = np.random.default_rng(0)
    issame = np.arange(20) % 2 == 0
    pairs = [(i, i if same else i + 50) for i, same in enumerate(issame)]
    images = np.stack([draw_face(identity, rng) for pair in pairs for identity in pair])
    return VerificationSet("tiny", images, np.arange(40).reshape(-1, 2), issame)


def as_exported(backbone, change=lambda embeddings: embeddings):
    """An exported network that is the network itself, with outputs that `change` changes."""
    runtime = TorchRuntime(backbone, CPU.device, 32)
    return ExportedNetwork((112, 112, 3), True, 32, {}, lambda batch: change(runtime(batch)[0]))


@pytest.mark.parametrize("unit", [False, True])
def test_an_export_that_agrees(backbone, eval_set, unit):
    prover = Prover(backbone, small_network_config(), [eval_set], unit)
    agreement = prover.check(lambda threads: as_exported(backbone, lambda rows: rows * 3 if unit else rows))
    direct, flipped = TorchRuntime(backbone, CPU.device, 40)(eval_set.images)
    assert len(agreement.cosines) == 40 and agreement.worst == pytest.approx(1)
    assert (agreement.drop, find_faults("fp32", agreement, 0)) == (0, [])
    if not unit:
        score = compute_score(direct, flipped, eval_set.pairs, eval_set.issame)
        np.testing.assert_allclose(agreement.scores["tiny"].distances, score.distances, atol=1e-6)
    alone = compute_score(direct, np.zeros_like(direct), eval_set.pairs, eval_set.issame)
    np.testing.assert_allclose(agreement.single["tiny"].distances, alone.distances, atol=1e-6)
    assert "accuracy on tiny: PyTorch " in agreement.format()
    assert "on 40 images: mean 1.000000, worst 1.000000" in agreement.format()


def test_an_export_that_disagrees(backbone, eval_set):
    rng = np.random.default_rng(0)
    prover = Prover(backbone, small_network_config(), [eval_set], False)
    noise = as_exported(backbone, lambda rows: rng.normal(size=rows.shape).astype(np.float32))
    agreement = prover.check(lambda threads: noise)
    accuracy, cosine = find_faults("int8", agreement, 0.2)
    assert "points lower, more than --max-drop 0.2" in accuracy and "below 0.9" in cosine
    with pytest.raises(UserError, match="not finite"):
        prover.check(lambda threads: as_exported(backbone, lambda rows: rows * np.float32(np.nan)))


@pytest.mark.parametrize(
    ("drop", "worst", "precision", "count"),
    [(0.19, 0.95, "int8", 0), (0.21, 0.95, "int8", 1), (0, 0.95, "fp16", 1), (0, 0.9995, "fp32", 1)],
)
def test_the_bounds(drop, worst, precision, count):
    comparison = Comparison("set", 6000, 0.99, 0.99 - drop / 100, (0, 0), 0, 0, 1.0)
    agreement = Agreement(np.array([1, worst]), [comparison], {}, {}, {})
    assert len(find_faults(precision, agreement, 0.2)) == count


def test_slower_than_the_baseline():
    speed = Speed({"fp32": np.array([1.0, 2, 3]), "near": np.array([1.02, 2.02, 9]), "slow": np.array([1.1, 2.2, 3.3])})
    assert find_slowness(speed, "one image takes", "near", "fp32") == ""
    fault = find_slowness(speed, "32 images take", "slow", "fp32")
    assert fault == "it is slower here: 32 images take 1.10 times as long as with fp32"
    assert speed.typical("fp32") == 2 and speed.ratio("fp32", "slow") == pytest.approx(1 / 1.1)


def test_networks_are_timed_in_turn(backbone):
    calls = []

    def open_network(name, threads):
        return ExportedNetwork((3, 112, 112), False, 32, {}, lambda batch: calls.append((name, threads, batch.shape)))

    files = {name: lambda threads, name=name: open_network(name, threads) for name in "ab"}
    faces = np.zeros((2, 112, 112, 3), np.uint8)
    before = torch.get_num_threads()
    speed = time_in_turn(backbone, files, faces, 1)
    assert torch.get_num_threads() == before and [*speed.seconds] == ["PyTorch", "a", "b"]
    assert {call[1:] for call in calls} == {(1, (2, 3, 112, 112))}
    names = "".join(name for name, _, _ in calls)
    assert names[:2] == "ab" and names.count("aaaabbbb") == len(speed.seconds["a"])
    assert all((seconds > 0).all() for seconds in speed.seconds.values())


def test_cosines():
    a, b = np.array([[1, 0], [2, 2], [0, 0]], np.float32), np.array([[-3, 0], [1, 0], [1, 1]], np.float32)
    np.testing.assert_allclose(row_cosines(a, b), [-1, 0.5**0.5, 0], atol=1e-12)


def test_calibration_faces(tmp_path, eval_set):
    write_data(tmp_path / "data")
    faces = load_calibration_faces(tmp_path / "data", [])
    assert faces.shape == (40, 112, 112, 3) and N_FACES == 300
    known = VerificationSet("known", faces[:30], np.zeros((0, 2), np.int64), np.zeros(0, bool))
    assert (load_calibration_faces(tmp_path / "data", [eval_set, known]) == faces[30:]).all()
    everything = VerificationSet("known", faces, np.zeros((0, 2), np.int64), np.zeros(0, bool))
    with pytest.raises(UserError, match="all its faces are in the verification set"):
        load_calibration_faces(tmp_path / "data", [everything])


def test_calibration_photos(tmp_path):
    with pytest.raises(UserError, match=r"nothing: no such folder of faces to calibrate int8 with; name one"):
        load_calibration_faces(tmp_path / "nothing", [])
    for person in range(2):
        (tmp_path / "faces" / f"{person}").mkdir(parents=True)
        face = draw_face(person, np.random.default_rng(0))
        (tmp_path / "faces" / f"{person}" / "0.png").write_bytes(encode_image(face, ".png"))
    faces = load_calibration_faces(tmp_path / "faces", [])
    assert faces.shape == (2, 112, 112, 3) and (faces[1] == face).all()
    (tmp_path / "faces" / "large.png").write_bytes(encode_image(np.zeros((200, 200, 3), np.uint8), ".png"))
    with pytest.raises(UserError, match=r"large\.png: is not an aligned face of 112×112 pixels; align the photos"):
        load_calibration_faces(tmp_path / "faces", [])
