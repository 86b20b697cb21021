"""Opens a page of deploy/web.py in Chromium, measures it on two photos and takes a picture of it.

Run from the root of the project:

    python benchmarks/page.py PAGE [A.jpg B.jpg] [--repeat 5] [--screenshot docs/page.png]

Without photos it draws two of a synthetic person.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from data.synthetic.people import Person, Shot
from data.synthetic.photos import Detection, View, render_photo
from tests.helpers.browser import CHROMIUM, open_browser, serve_folder
from tests.helpers.page import IS_LOADED, embed_in_page
from utils.errors import UserError, run_cli
from utils.filesystem import write_atomic

WIDTH, HEIGHT = 900, 880  # of the page in pixels
_PERSON = 111  # seed of the synthetic person
_STATE, _VERDICT = "document.getElementById('state').textContent", "document.getElementById('verdict').innerText"


def main() -> None:
    """Parses the command line and measures the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path, metavar="PAGE", help="a folder of python -m deploy.web")
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="two photos, or none")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each photo (%(default)s)")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="the PNG to write")
    args = parser.parse_args()
    if len(args.photos) not in (0, 2):
        raise UserError(f"takes two photos, not {len(args.photos)}")
    for photo in args.photos:
        if not photo.is_file():
            raise UserError(f"{photo}: no such photo")
    if not CHROMIUM:
        raise UserError("needs Chromium", fix="install it, as the package chromium for example")
    with tempfile.TemporaryDirectory() as folder:
        picture = measure(
            args.page, [photo.resolve() for photo in args.photos] or draw_photos(Path(folder)), args.repeat
        )
    if args.screenshot:
        write_atomic(args.screenshot, lambda file: file.write(picture))
        print(f"{args.screenshot}: {len(picture):,} bytes")


def draw_photos(folder: Path) -> list[Path]:
    """Writes two photos of a synthetic person and returns their paths."""
    rng = np.random.default_rng(_PERSON)
    person = Person.sample(rng)
    paths = [folder / "first.jpg", folder / "second.jpg"]
    for path in paths:
        view = View.sample(rng, 0.0)
        path.write_bytes(render_photo(person, Detection.sample(rng, Shot.sample(rng), view)))
    return paths


def measure(page: Path, photos: list[Path], repeat: int) -> bytes:
    """Prints the milliseconds of each photo and the verdict on both, and returns a PNG of the page."""
    with serve_folder(page) as (url, _), open_browser("--hide-scrollbars") as browser:
        browser.resize(WIDTH, HEIGHT)
        browser.open(f"{url}/index.html")
        if browser.wait(IS_LOADED) is not True:
            raise UserError(f"{page}: {browser.evaluate(_STATE)}")
        for photo in photos:
            times = [embed_in_page(browser, photo.read_bytes()).milliseconds for _ in range(repeat)]
            find, embed = np.median(times, axis=0)
            print(f"{photo.name}: {find:.0f} ms to find and align the face, {embed:.0f} ms to embed it")
        for place, photo in enumerate(photos, start=1):
            browser.give_file(f"section:nth-of-type({place}) input", photo)
        print(browser.wait(_VERDICT).replace("\n", ": "))
        return browser.screenshot()


if __name__ == "__main__":
    run_cli(main)
