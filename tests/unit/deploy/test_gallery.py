"""Search among embeddings."""

import numpy as np
import pytest

from deploy.gallery import Gallery, Match
from utils.errors import UserError


def unit_vectors(rng, *shape):
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def gallery():
    """Three photos of each of 40 people, and two photos outside folders."""
    names = [f"person{p:02}/{i}.jpg" for p in range(40) for i in range(3)] + ["x.jpg", "y.jpg"]
    return Gallery(unit_vectors(np.random.default_rng(0), 122, 8), np.array(names), "model.pth", "0" * 64)


@pytest.mark.parametrize("scores", [1 << 26, 300])  # in memory: of all queries, of two at a time
def test_search_finds_the_best_photo_of_each_person(gallery, monkeypatch, scores):
    # Products of other numbers of rows may differ in their last bits, on some CPUs.
    monkeypatch.setattr("deploy.gallery._MAX_SCORES", scores)
    queries = unit_vectors(np.random.default_rng(1), 20, 8)
    found = gallery.search(queries, 5)
    assert len(found) == 20
    for query, matches in zip(queries, found, strict=True):
        best: dict[str, Match] = {}
        for photo, embedding in zip(gallery.photos.tolist(), gallery.embeddings, strict=True):
            person = photo.split("/")[0]
            similarity = float(query @ embedding)
            if person not in best or similarity > best[person].similarity:
                best[person] = Match(person, photo, similarity)
        expected = sorted(best.values(), key=lambda match: -match.similarity)[:5]
        assert [(match.person, match.photo) for match in matches] == [(m.person, m.photo) for m in expected]
        np.testing.assert_allclose([m.similarity for m in matches], [m.similarity for m in expected], atol=1e-6)
    assert len(gallery.search(queries[:1], 100)[0]) == 42


def test_a_file_keeps_everything(gallery, tmp_path):
    order = np.random.default_rng(2).permutation(122)  # the photos of a person need not lie together
    Gallery(gallery.embeddings[order], gallery.photos[order], "model.pth", "1" * 64).save(tmp_path / "g.npz")
    loaded = Gallery.load(tmp_path / "g.npz")
    assert (loaded.model, loaded.sha256, loaded.n_people) == ("model.pth", "1" * 64, 42)
    queries = unit_vectors(np.random.default_rng(3), 4, 8)
    for one, other in zip(loaded.search(queries, 3), gallery.search(queries, 3), strict=True):
        assert [match.photo for match in one] == [match.photo for match in other]


def test_files_that_hold_no_embeddings(tmp_path, gallery):
    np.savez(tmp_path / "others.npz", a=np.zeros(3))
    np.savez(tmp_path / "empty.npz", embeddings=np.zeros((0, 8)), photos=np.array([], str), model="m", sha256="0")
    np.savez(
        tmp_path / "objects.npz", embeddings=np.zeros((1, 8)), photos=np.array([b"x"], object), model="", sha256=""
    )
    for name, embeddings in {
        "words": np.array([["a"]]),
        "long": np.full((1, 8), 5.0),
        "nan": np.full((1, 8), np.nan),
    }.items():
        np.savez(tmp_path / f"{name}.npz", embeddings=embeddings, photos=np.array(["x"]), model="", sha256="")
    (tmp_path / "text.npz").write_text("no archive")
    gallery.save(tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-30])
    for name in ("others", "empty", "objects", "text", "cut", "words", "long", "nan"):
        with pytest.raises(UserError, match="holds no embeddings"):
            Gallery.load(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="No such file"):
        Gallery.load(tmp_path / "missing.npz")
