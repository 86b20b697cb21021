"""The page of deploy/web.py, served to a browser as to a person."""

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy import FaceEmbedder
from tests.helpers.browser import Browser
from tests.helpers.commands import run_command
from tests.helpers.page import IS_LOADED
from tests.helpers.paths import ROOT

MESSAGES = "[...document.querySelectorAll('.message')].map((part) => part.textContent)"
VERDICT = "document.getElementById('verdict').innerText"


@dataclass(frozen=True)
class ServedPage:
    """A page, a browser that may show it, and the command's embedder for the same file."""

    url: str
    requests: list[str]
    browser: Browser
    embedder: FaceEmbedder
    photos: Path

    def open(self, width: int = 900) -> Browser:
        """Opens the page anew, and returns the browser when the networks are loaded."""
        self.browser.events.clear()
        self.browser.resize(width, 900)
        self.browser.open(f"{self.url}/index.html?{len(self.requests)}")
        assert self.browser.wait(IS_LOADED) is True
        return self.browser

    def give(self, *photos: Path | None) -> list[str]:
        """Gives a photo to each place, None for none, and returns the messages when all are done."""
        for place, photo in enumerate(photos, start=1):
            if photo:
                self.browser.give_file(f"section:nth-of-type({place}) input", photo)
        self.browser.wait(f"{MESSAGES}.every((text) => !text.startsWith('Looking'))")
        return self.browser.evaluate(MESSAGES)


def write_page(out: Path, model: Path, runtime: Path) -> None:
    """Writes the page of an .onnx file with deploy/web.py. runtime: the npm package onnxruntime-web."""
    done = run_command(ROOT, sys.executable, "-m", "deploy.web", out, "--model", model, "--runtime", runtime)
    assert done.returncode == 0, done.stderr
