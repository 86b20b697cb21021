"""FaceEmbedder: networks in every form they are kept in, photos in every form, and verdicts."""

import doctest
import shutil

import numpy as np
import pytest

import deploy.embedder
from backbones.build import build_backbone
from backbones.folding import fold
from config import load_config
from deploy import FaceEmbedder
from eval.inference import embedding
from eval.inference.embedding import TorchRuntime, embed
from tests.helpers.networks import small_network_config, write_network
from tests.helpers.paths import ROOT
from tests.helpers.photos import decode, draw_photo
from tests.helpers.training import CPU
from utils.checkpoints.weights import load_weights, save_weights
from utils.errors import UserError
from utils.openvino_core import is_installed


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The folder of a small network with thresholds."""
    return write_network(tmp_path_factory.mktemp("networks") / "run").parent


@pytest.fixture(scope="module")
def photos():
    """Photos of two people, as the content of files."""
    return [draw_photo(seed)[0] for seed in (0, 1)]


def test_the_example_in_the_docstring(tmp_path, monkeypatch, photos):
    write_network(tmp_path / "output" / "demo", "embedding_size=128", cosine=0.9999)
    for name, photo in (("anna", photos[0]), ("anna2", photos[0]), ("bert", photos[1])):
        (tmp_path / f"{name}.jpg").write_bytes(photo)
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(deploy.embedder).failed == 0
    assert doctest.testmod(deploy.embedder).attempted >= 4


def test_embeddings_are_those_of_the_evaluation(network):
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    embedder = FaceEmbedder.load(network)
    backbone = build_backbone(small_network_config())
    load_weights(backbone, network / "5backbone.pth")
    direct, flipped = embed(TorchRuntime(backbone, CPU.device, 2), faces)
    expected = (direct + flipped) / np.linalg.norm(direct + flipped, axis=1, keepdims=True)
    for found in (embedder.embed(faces), embedder.embed(list(faces)), embedder.embed_aligned(faces)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert embedder.embed([]).shape == (0, 32)


def test_the_network_is_folded_once_and_converted_once(network, monkeypatch):
    """Folding takes longer than the embedding of a face."""
    made = []
    monkeypatch.setattr(embedding, "fold", lambda backbone: made.append("torch") or fold(backbone))
    monkeypatch.setattr(embedding, "OpenVinoRuntime", lambda backbone: made.append("openvino") or Stub())
    embedder, face = FaceEmbedder.load(network), np.zeros((1, 112, 112, 3), np.uint8)
    sizes = (1, 2, 1, 1000, 1, 1000) if is_installed() else (1, 2, 1)
    for n in sizes:
        embedder.embed_aligned(face.repeat(n, axis=0))
    assert made == (["torch", "openvino"] if is_installed() else ["torch"])


class Stub:
    """A runtime whose embeddings are ones."""

    batch = 1000

    def __call__(self, images):
        return (np.ones((len(images), 32), np.float32),) * 2


def test_photos_in_every_form(network, photos, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    embedder = FaceEmbedder.load(network)
    forms = [tmp_path / "photo.jpg", str(tmp_path / "photo.jpg"), photos[0], decode(photos[0])]
    embeddings = embedder.embed(forms)
    assert (embeddings == embeddings[0]).all()
    assert not np.allclose(embeddings[0], embedder.embed([photos[1]])[0])


def test_comparison(network, photos):
    embedder = FaceEmbedder.load(network)
    same = embedder.compare(photos[0], photos[0])
    assert same.same and same.threshold == 0.99 and same.similarity == pytest.approx(1)
    first, second = embedder.embed(photos)
    assert embedder.compare(*photos, far=1e-2).similarity == pytest.approx(float(first @ second))
    with pytest.raises(UserError, match=r"no threshold at FAR 0.0001; there are 0.01, 0.001$"):
        embedder.compare(*photos, far=1e-4)


def test_weights_without_a_config(tmp_path):
    """Published weights lie alone in a folder."""
    config = load_config(ROOT / "config" / "config_PocketNetS128.py")
    save_weights(tmp_path / "295672backbone.pth", build_backbone(config))
    embedder = FaceEmbedder.load(tmp_path / "295672backbone.pth")
    assert embedder.model.network["n_layers"] == 18 and embedder.model.embedding_size == 128
    path = shutil.copy(write_network(tmp_path / "run"), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"has no config.json beside it, and no shipped config fits; name its config"):
        FaceEmbedder.load(path)
    assert FaceEmbedder.load(path, config=tmp_path / "run").model.embedding_size == 32


@pytest.mark.parametrize(
    ("photo", "error"),
    [
        (np.zeros((300, 300, 3), np.uint8), "the photo: no face was found"),
        (np.zeros((300, 300), np.uint8), "expected RGB pixels"),
        (np.zeros((112, 112, 3)), "expected RGB pixels"),
        (b"no photo", "the photo: cannot be decoded"),
        ("/nowhere/a.jpg", "/nowhere/a.jpg: No such file"),
    ],
)
def test_photos_that_cannot_be_used(network, photo, error):
    with pytest.raises(UserError, match=error):
        FaceEmbedder.load(network).embed([photo])


def test_two_faces(network, photos):
    images = [decode(photo) for photo in photos]
    height = min(image.shape[0] for image in images)
    group = np.hstack([image[:height] for image in images])
    with pytest.raises(UserError, match="2 faces were found; cut out one, or"):
        FaceEmbedder.load(network).embed([group])
    assert FaceEmbedder.load(network, largest=True).embed([group]).shape == (1, 32)


def test_weights_that_are_not_finite(tmp_path):
    path = write_network(tmp_path)
    backbone = build_backbone(small_network_config())
    backbone.tail[-1].weight.data.fill_(3e38)
    save_weights(path, backbone)
    with pytest.raises(UserError, match="its embeddings are not finite"):
        FaceEmbedder.load(path).embed_aligned(np.zeros((1, 112, 112, 3), np.uint8))


def test_networks_that_do_not_exist(tmp_path, network):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"broken\.onnx: cannot be opened"):
        FaceEmbedder.load(tmp_path / "broken.onnx")
    for name in ("missing.onnx", "missing", "missing.pth"):
        with pytest.raises(UserError, match="no such"):
            FaceEmbedder.load(tmp_path / name)
    with pytest.raises(UserError, match="there are no thresholds for this network; evaluate it first"):
        FaceEmbedder.load(write_network(tmp_path / "new", cosine=None)).compare(
            *[np.zeros((112, 112, 3), np.uint8)] * 2
        )
