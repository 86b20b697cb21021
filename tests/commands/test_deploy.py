"""deploy/: the commands that use a network on photos."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy import FaceEmbedder
from tests.helpers.commands import run_command
from tests.helpers.networks import write_network
from tests.helpers.paths import ROOT
from tests.helpers.photos import decode, draw_photo, write_people
from utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with thresholds, and photos of three people."""
    folder = tmp_path_factory.mktemp("deploy")
    write_network(folder / "run", cosine=0.9999)
    write_people(folder / "photos", people=3)
    shutil.copy(folder / "photos" / "person 0" / "0.jpg", folder / "query.jpg")
    (folder / "photos" / "person 1" / "text.jpg").write_text("no photo")
    (folder / "stranger.jpg").write_bytes(draw_photo(99)[0])
    return folder


def deploy(command, *arguments, **how):
    return run_command(ROOT, sys.executable, "-m", f"deploy.{command}", *arguments, **how)


def write_png(path, image):
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def gallery(folder):
    done = deploy("embed", folder / "photos", "--out", folder / "faces.npz", "--model", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "person 1/text.jpg: cannot be decoded: left out" in done.stdout
    assert done.stdout.endswith("faces.npz: 6 faces of 3 people; 1 left out\n")
    return folder / "faces.npz"


def test_compare(folder, tmp_path):
    photos = folder / "photos"
    same = deploy(
        "compare", photos / "person 0" / "0.jpg", folder / "query.jpg", "--model", folder / "run",
        "--picture", tmp_path / "out.png", new_interpreter=True,
    )  # fmt: skip
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "similarity 1.000, threshold 1.000 (FAR 0.001 on demo): the same person\n"
    picture = decode((tmp_path / "out.png").read_bytes())
    assert picture.shape[1] > 300
    other = deploy("compare", photos / "person 0" / "0.jpg", photos / "person 1" / "0.jpg", "--model", folder / "run")
    assert other.returncode == 0 and other.stdout.endswith(": different people\n")


def test_embed_and_search(folder, gallery):
    with np.load(gallery) as arrays:
        assert arrays["embeddings"].shape == (6, 32) and arrays["photos"].tolist()[0] == "person 0/0.jpg"
        np.testing.assert_allclose(np.linalg.norm(arrays["embeddings"], axis=1), 1, atol=1e-6)
    done = deploy("search", gallery, folder / "query.jpg", folder / "stranger.jpg")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"{folder}/query.jpg:", "  1.000  person 0  person 0/0.jpg"]
    assert lines[-2].startswith(f"{folder}/stranger.jpg: nobody here (nearest: person ")
    assert lines[-1] == "threshold 1.000 (FAR 0.001 on demo); among 3 people 0.3 to 0.6 % of strangers reach it"


def test_a_gallery_of_another_network(folder, gallery, tmp_path):
    write_network(tmp_path, "channel=8")
    done = deploy("search", gallery, folder / "query.jpg", "--model", tmp_path)
    assert done.returncode == 2 and "was made with another network than" in done.stderr


def test_a_shared_folder(folder, tmp_path):
    done = deploy("share", tmp_path / "shared", "--model", folder / "run", "--name", "tiny", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert f"hf upload NAME {tmp_path / 'shared'} uploads the folder" in done.stdout.splitlines()[-1]
    weights = torch.load(folder / "run" / "5backbone.pth")
    shared = load_file(tmp_path / "shared" / "model.safetensors")
    assert weights.keys() == shared.keys() and all(torch.equal(weights[key], shared[key]) for key in weights)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\n') and "| demo | 6,000 | 97.50 | 97.00 to 98.00 |" in card
    assert "| demo | 0.001 | 1.000 | 25.00 |" in card and str(folder) not in card
    for file in ("config.json", "thresholds.json"):
        assert str(folder) not in (tmp_path / "shared" / file).read_text()
    moved = shutil.move(tmp_path / "shared", tmp_path / "moved")
    original, copy = FaceEmbedder.load(folder / "run"), FaceEmbedder.load(moved)
    photo = folder / "query.jpg"
    assert (original.embed([photo]) == copy.embed([photo])).all()
    assert original.compare(photo, photo) == copy.compare(photo, photo)
    again = deploy("share", moved, "--model", folder / "run")
    assert again.returncode == 2 and "exists already; name another folder" in again.stderr


def test_sets_with_a_warning_are_not_shared(tmp_path):
    weights = write_network(tmp_path / "run")
    for file in ("results.json", "thresholds.json"):
        content = json.loads((weights.parent / file).read_text())
        content["5"]["folder:raw"] = content["5"]["demo"] | {"warning": "the photos are not aligned"}
        (weights.parent / file).write_text(json.dumps(content))
    assert deploy("share", tmp_path / "out", "--model", tmp_path / "run").returncode == 0
    assert [*json.loads((tmp_path / "out" / "thresholds.json").read_text())["model"]] == ["demo"]
    assert "raw" not in (tmp_path / "out" / "README.md").read_text()


def test_own_photos_do_not_pass_for_a_public_set(tmp_path):
    """A folder of photos may be called lfw."""
    weights = write_network(tmp_path / "run")
    shutil.copy(weights.parent / "results.json", weights.parent / "results_lfw.json")
    assert deploy("share", tmp_path / "out", "--model", tmp_path / "run", "--name", "x").returncode == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| photos:demo | 6,000 |" in card and card.count('"name": "demo"') == 1 and '"photos:demo"' not in card
    assert 'FaceEmbedder.load("out")' in card and "trained on data that are not named" in card


def test_own_photos_have_one_name_in_a_shared_folder(tmp_path):
    weights = write_network(tmp_path / "run")
    for file, name in (("results_mine.json", "mine"), ("thresholds.json", "pairs:mine")):
        content = json.loads((weights.parent / file.replace("_mine", "")).read_text())
        content["5"][name] = content["5"]["demo"] | {"pairs_sha256": "of these pairs"}
        (weights.parent / file).write_text(json.dumps(content))
    assert deploy("share", tmp_path / "out", "--model", tmp_path / "run").returncode == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| pairs:mine | 6,000 |" in card and "| pairs:mine | 0.001 |" in card and "photos:mine" not in card


def test_a_shared_config_of_a_huge_network_takes_no_memory(folder, tmp_path):
    assert deploy("share", tmp_path / "out", "--model", folder / "run").returncode == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"channel": 4096, "n_layers": 200}))
    with pytest.raises(UserError, match=r"belongs to another network|has shape"):
        FaceEmbedder.load(tmp_path / "out")


def test_the_front_matter_is_yaml(folder, tmp_path):
    yaml = pytest.importorskip("yaml")
    name = "a: 'quoted' \"name\" # with signs"
    assert deploy("share", tmp_path / "out", "--model", folder / "run", "--name", name).returncode == 0
    front_matter = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    (entry,) = front_matter["model-index"]
    assert entry["name"] == name and entry["results"][0]["metrics"][0]["value"] == 97.5


def test_a_shared_folder_without_an_evaluation(tmp_path):
    write_network(tmp_path / "run", cosine=None)
    done = deploy("share", tmp_path / "out", "--model", tmp_path / "run")
    weights, out = tmp_path / "run" / "5backbone.pth", tmp_path / "out"
    assert done.returncode == 0 and done.stdout.endswith(
        f"No evaluation of {weights} was found: python eval/eval.py output={weights}, remove {out}, then this command "
        "again\n"
    )
    assert json.loads((tmp_path / "out" / "thresholds.json").read_text()) == {"model": {}}
    verdict = deploy("compare", "a.jpg", "b.jpg", "--model", tmp_path / "out")
    assert verdict.returncode == 2 and "there are no thresholds for this network; evaluate it first" in verdict.stderr


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["compare", "empty.png", "query.jpg"], "empty.png: no face was found; take a photo that"),
        (["compare", "group.png", "query.jpg"], "group.png: 2 faces were found; cut out one, or"),
        (["compare", "missing.jpg", "query.jpg"], "missing.jpg: No such file or directory"),
        (["compare", "query.jpg", "query.jpg", "--far", "1e-5"], "no threshold at FAR 1e-05; there are 0.01, 0.001"),
        (["compare", "query.jpg", "query.jpg", "--set", "lfw"], "no thresholds of the set 'lfw'; there are demo"),
        (["compare", "query.jpg", "query.jpg", "--picture", "x.abc"], "--picture x.abc: "),
        (["compare", "query.jpg"], "the following arguments are required: B"),
        (["embed", "nothing", "--out", "x.npz"], "nothing: no such folder"),
        (["embed", "blank", "--out", "faces"], "--out faces: should be a file that ends in .npz"),
        (["share", "x" * 300], "name another folder"),
        (["share", "blank"], "blank: exists already; name another folder, or remove it"),
        (["share", "query.jpg"], "query.jpg: exists already; name another folder, or remove it"),
        (["share", "query.jpg/out"], "query.jpg/out: Not a directory; name another folder"),
        (["share", "/proc/out"], "/proc/out: No such file or directory; name another folder"),
        (["share", "out", "--model", "missing.pth"], "--model 'missing.pth': no such checkpoint"),
        (["share", "out", "--model", "net.onnx"], "--model net.onnx: is an exported file; name the checkpoint that"),
        (["share", "out", "--model", "lone.pth"], "lone.pth: has no config.json beside it, and no shipped config fits"),
        (["embed", "blank", "--out", "x.npz"], "blank: no photo with one face; --largest takes one of several faces"),
        (["search", "query.jpg", "query.jpg"], "query.jpg: holds no embeddings"),
        (["search", "missing.npz", "query.jpg"], "missing.npz: No such file"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, command, error):
    shutil.copy(folder / "query.jpg", tmp_path)
    blank = np.full((200, 200, 3), 128, np.uint8)
    photos = [decode(draw_photo(seed)[0]) for seed in (0, 1)]
    height = min(photo.shape[0] for photo in photos)
    write_png(tmp_path / "empty.png", blank)
    write_png(tmp_path / "group.png", np.hstack([photo[:height] for photo in photos]))
    write_png(tmp_path / "blank" / "empty.png", blank)
    shutil.copy(folder / "run" / "5backbone.pth", tmp_path / "lone.pth")
    model = [] if "--model" in command else ["--model", folder / "run"]
    done = run_command(
        tmp_path, sys.executable, "-m", f"deploy.{command[0]}", *command[1:], *model, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert error in done.stderr and not (tmp_path / "out").exists()
