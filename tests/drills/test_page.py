"""The page of deploy/web.py in a real Chromium: the same faces as the command, every message, and nothing leaves it."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("websockets", reason="pip install -r requirements-dev.txt")

from config import load_config
from deploy import FaceEmbedder
from deploy.web import PAGE, RUNTIME, RUNTIME_FILES
from tests.helpers.browser import CHROMIUM, open_browser, serve_folder
from tests.helpers.networks import set_threshold, write_onnx
from tests.helpers.page import IS_LOADED, embed_in_page
from tests.helpers.paths import ROOT, SHARED
from tests.helpers.photos import decode, draw_photo, rotate_exif, surround
from tests.helpers.served_page import VERDICT, ServedPage, write_page
from utils.errors import UserError

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PUBLISHED_THRESHOLD = 0.313  # cosine, of PocketNetS-128


@pytest.fixture(scope="session")
def runtime(tmp_path_factory) -> Path:
    """The npm package onnxruntime-web: that of deploy/page, or else one installed for the tests."""
    package = PAGE / "node_modules" / RUNTIME
    if all((package / "dist" / name).is_file() for name in RUNTIME_FILES):
        return package
    npm = shutil.which("npm")
    if not npm:
        pytest.skip(f"needs the npm package {RUNTIME}, and there is no npm")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PAGE / name, folder)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {RUNTIME}: {done.stderr.strip().splitlines()[-1]}")
    return folder / "node_modules" / RUNTIME


@pytest.fixture(scope="module")
def page(tmp_path_factory, runtime) -> Iterator[ServedPage]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    first, second = (draw_photo(seed)[0] for seed in (0, 1))
    pixels = [decode(photo) for photo in (first, second)]
    smaller = cv2.resize(pixels[0], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    both = np.hstack([image[:240] for image in pixels])
    images = {"smaller": smaller, "both": both, "empty": np.full((300, 200, 3), 120, np.uint8)}
    for name, image in images.items():
        cv2.imwrite(str(folder / "photos" / f"{name}.png"), image[..., ::-1])
    for name, content in {"first": first, "second": second, "text": b"no photo"}.items():
        (folder / "photos" / f"{name}.jpg").write_bytes(content)
    (folder / "photos" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    camera = cv2.imencode(".jpg", decode(surround(first, 640, 480))[..., ::-1])[1].tobytes()
    (folder / "camera.mjpeg").write_bytes(camera)
    model = write_onnx(folder / "net.onnx")
    embedder = FaceEmbedder.load(model)
    a, same, other = embedder.embed([folder / "photos" / name for name in ("first.jpg", "smaller.png", "second.jpg")])
    assert a @ other < 0.95 < a @ same
    set_threshold(model, 0.95)
    write_page(folder / "out", model, runtime)
    capture = f"--use-file-for-fake-video-capture={folder / 'camera.mjpeg'}"
    with serve_folder(folder / "out") as (url, requests), open_browser(capture) as browser:
        yield ServedPage(url, requests, browser, FaceEmbedder.load(model), folder / "photos")


@pytest.fixture(scope="module")
def published_page(tmp_path_factory, runtime) -> Iterator[ServedPage]:
    """A page with the published PocketNetS-128, at its threshold of FAR 1e-3 on LFW."""
    weights = SHARED / "data" / "PocketNetS-128" / "295672backbone.pth"
    photos = SHARED / "data" / "photos"
    if not weights.is_file() or not photos.is_dir():
        pytest.skip("needs the published weights and photos of ../shared/data")
    folder = tmp_path_factory.mktemp("published")
    config = load_config(ROOT / "config" / "config_PocketNetS128.py")
    model = write_onnx(folder / "net.onnx", PUBLISHED_THRESHOLD, config, weights)
    write_page(folder / "out", model, runtime)
    with serve_folder(folder / "out") as (url, requests), open_browser() as browser:
        yield ServedPage(url, requests, browser, FaceEmbedder.load(model), photos)


def test_the_page_sees_the_faces_that_the_command_sees(page):
    photos = [draw_photo(seed)[0] for seed in range(20)]
    photos += [surround(photos[0], 900, 700), surround(photos[1], 500, 1400), surround(photos[2], 2000, 1000)]
    upright = cv2.rotate(decode(photos[3]), cv2.ROTATE_90_COUNTERCLOCKWISE)
    photos.append(rotate_exif(cv2.imencode(".jpg", upright[..., ::-1])[1].tobytes(), 6))
    small = cv2.resize(decode(photos[4]), (110, 100), interpolation=cv2.INTER_AREA)  # smaller than the detector's input
    photos.append(cv2.imencode(".png", small[..., ::-1])[1].tobytes())
    photos.append(cv2.imencode(".png", page.embedder.align(photos[5])[..., ::-1])[1].tobytes())  # an aligned face
    browser = page.open()
    seen = [embed_in_page(browser, photo) for photo in photos]
    faces = np.stack([page.embedder.align(photo) for photo in photos])
    differences = np.abs(np.stack([face.aligned for face in seen]).astype(float) - faces).mean(axis=(1, 2, 3))
    print(f"largest mean difference of pixels {differences.max():.3f}, mean {differences.mean():.4f}")
    assert differences.max() < 0.1 and differences[-1] == 0
    embeddings = page.embedder.embed_aligned(faces)
    ours = np.stack([face.embedding for face in seen])
    difference = np.abs(ours @ ours.T - embeddings @ embeddings.T).max()
    print(f"largest difference of similarities {difference:.5f}")
    assert difference < 0.005


def test_a_network_that_takes_floats(page, runtime, tmp_path):
    model = write_onnx(tmp_path / "net.onnx", takes_pixels=False)
    write_page(tmp_path / "out", model, runtime)
    photo = draw_photo(0)[0]
    with serve_folder(tmp_path / "out") as (url, _):
        page.browser.open(f"{url}/index.html")
        embedding = embed_in_page(page.browser, photo).embedding
    (expected,) = FaceEmbedder.load(model).embed([photo])
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-3)


def test_the_verdicts_of_the_command_on_100_pairs_of_photos(published_page):
    """Photos of which both say that they show several faces are left out."""
    page, browser = published_page, published_page.open()
    people: list[list[tuple[NDArray, NDArray]]] = []  # of each photo the embedding of the page, and that of the command
    times, refused = [], 0
    for folder in sorted(page.photos.iterdir()):
        found = []
        for photo in sorted(folder.glob("*.jpg"))[:4]:
            try:
                (expected,) = page.embedder.embed([photo])
            except UserError:
                refused += 1
                with pytest.raises(UserError, match="found"):
                    embed_in_page(browser, photo.read_bytes())
            else:
                face = embed_in_page(browser, photo.read_bytes())
                times.append(face.milliseconds)
                found.append((face.embedding, expected))
            if len(found) == 2:
                people.append(found)
                break
        if len(people) == 50:
            break
    pairs = [(*photos, True) for photos in people] + [(people[i - 1][0], people[i][1], False) for i in range(50)]
    ours, command = (np.array([a[side] @ b[side] for a, b, _ in pairs]) for side in (0, 1))
    verdicts, expected = ours >= PUBLISHED_THRESHOLD, command >= PUBLISHED_THRESHOLD
    equal, difference = np.sum(verdicts == expected), np.abs(ours - command).max()
    right = np.mean(expected == np.array([same for *_, same in pairs]))
    print(f"{equal} of {len(pairs)} verdicts equal, {100 * right:.0f} % right; {refused} photos refused by both")
    nearest = np.abs(command - PUBLISHED_THRESHOLD).min()
    print(f"similarities differ by at most {difference:.6f}; the nearest to the threshold is {nearest:.4f} from it")
    print("medians: {:.0f} ms to find a face, {:.0f} ms to embed it".format(*np.median(times, axis=0)))
    assert equal == len(pairs) == 100 and difference < 0.01 and right > 0.9


def test_two_photos_of_one_person_and_of_two(page):
    browser = page.open()
    messages = page.give(page.photos / "first.jpg", page.photos / "smaller.png")
    assert all(text.startswith("Face found in ") and " ms, embedded in " in text for text in messages)
    assert browser.wait(VERDICT).startswith("The same person") and "0.950" in browser.evaluate(VERDICT)
    page.give(None, page.photos / "second.jpg")
    assert browser.wait(VERDICT).startswith("Different people")
    about = browser.evaluate("document.getElementById('about').textContent")
    assert "one in 1,000 pairs of different people" in about and "demo" in about
    assert browser.errors() == []


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("empty.png", "No face was found."),
        ("both.png", "2 faces were found."),
        ("text.jpg", "This file is not a photo that the browser can read."),
        ("phone.heic", "This browser cannot read HEIC photos. Convert it to JPEG"),
    ],
)
def test_a_photo_that_cannot_be_used(page, photo, message):
    browser = page.open()
    first, second = page.give(page.photos / photo, page.photos / "second.jpg")
    assert first.startswith(message) and second.startswith("Face found")
    assert browser.evaluate(VERDICT) == "" and browser.errors() == []
    first, _ = page.give(page.photos / "first.jpg")  # another photo in the same place
    assert first.startswith("Face found") and browser.wait(VERDICT).startswith("Different people")


def test_a_photo_that_is_dropped(page):
    browser = page.open()
    content = base64.b64encode((page.photos / "first.jpg").read_bytes()).decode()
    browser.evaluate(f"""
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob({content!r}), (character) => character.charCodeAt(0));
        transfer.items.add(new File([bytes], "first.jpg"));
        const event = new DragEvent("drop", {{ dataTransfer: transfer, bubbles: true, cancelable: true }});
        document.querySelector(".frame").dispatchEvent(event);
    """)
    browser.wait("document.querySelector('.message').textContent.startsWith('Face found')")
    assert browser.errors() == []


def test_the_camera(page):
    browser = page.open()
    browser.evaluate("document.querySelector('.camera').click()")
    browser.wait("!document.querySelector('.shoot').hidden && document.querySelector('video').videoWidth")
    browser.evaluate("document.querySelector('.shoot').click()")
    browser.wait("document.querySelector('.message').textContent.startsWith('Face found')")
    assert browser.evaluate("document.querySelector('video').srcObject") is None and browser.errors() == []


def test_nothing_leaves_the_page(page):
    """It asks its server for its own files alone, and may not ask another."""
    browser = page.open()
    before = len(page.requests)
    page.give(page.photos / "first.jpg", page.photos / "second.jpg")
    assert browser.wait(VERDICT) and len(page.requests) == before
    assert all(address.startswith((page.url, "data:")) for address in browser.requested())
    with serve_folder(page.photos) as (elsewhere, asked):
        fetched = f"fetch('{elsewhere}/first.jpg', {{ mode: 'no-cors' }}).then(() => 'sent', (error) => error.name)"
        assert browser.evaluate(fetched) == "TypeError"
        shown = f"new Promise((done) => {{ const image = new Image(); image.onload = () => done('sent'); \
            image.onerror = () => done('refused'); image.src = '{elsewhere}/first.jpg'; }})"
        assert browser.evaluate(shown) == "refused"
        assert asked == []
    assert sum("Content Security Policy" in text for text in browser.errors()) >= 2


def test_a_narrow_screen(page):
    browser = page.open(width=360)
    page.give(page.photos / "first.jpg", page.photos / "second.jpg")
    browser.wait(VERDICT)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    tops = browser.evaluate("[...document.querySelectorAll('section')].map((part) => part.offsetTop)")
    assert tops[0] < tops[1]  # below each other


def test_a_file_that_is_missing_on_the_server(page, tmp_path):
    browser = page.browser
    shutil.copytree(page.photos.parent / "out", tmp_path / "page")
    (tmp_path / "page" / "networks" / "mesh.onnx").unlink()
    with serve_folder(tmp_path / "page") as (url, _):
        browser.open(f"{url}/index.html")
        assert browser.wait(IS_LOADED) == "error"
        text = browser.evaluate("document.getElementById('state').textContent")
    assert text == "networks/mesh.onnx could not be loaded (404). Reload the page."
