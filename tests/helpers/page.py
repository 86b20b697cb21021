"""The page of deploy/web.py in a browser, and its functions, called there."""

import base64
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import FaceEmbedder
from tests.helpers.browser import Browser
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from utils.errors import UserError

MESSAGES = "[...document.querySelectorAll('.message')].map((part) => part.textContent)"
VERDICT = "document.getElementById('verdict').innerText"
IS_LOADED = "document.getElementById('state').hidden || document.getElementById('state').className"
# Returns the aligned face and its embedding, or the error, of a photo given in base64.
_ALIGN = """(async (content) => {
  const [{ FaceEmbedder }, { readPhoto }] = await Promise.all([import("./faces.js"), import("./images.js")]);
  window.embedder ??= await FaceEmbedder.load();
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  try {
    const image = await readPhoto(new Blob([bytes]));
    const start = performance.now();
    const { box, aligned } = await window.embedder.align(image);
    const middle = performance.now();
    const embedding = await window.embedder.embed(aligned);
    const times = [middle - start, performance.now() - middle];
    return { box, aligned: Array.from(aligned), embedding: Array.from(embedding), times };
  } catch (error) {
    return { error: error.message };
  }
})"""


@dataclass(frozen=True)
class PageFace:
    """What the page found in a photo."""

    box: list[float]
    aligned: NDArray[np.uint8]  # (112, 112, 3) RGB
    embedding: NDArray[np.float64]  # (D,)
    milliseconds: list[float]  # to find and align, to embed


def embed_in_page(browser: Browser, photo: bytes) -> PageFace:
    """Returns what the functions of the open page find in a photo. Raises UserError with their error."""
    found: dict[str, Any] = browser.evaluate(f"{_ALIGN}({base64.b64encode(photo).decode()!r})")
    if "error" in found:
        raise UserError(found["error"])
    aligned = np.array(found["aligned"], np.uint8).reshape(112, 112, 3)
    return PageFace(found["box"], aligned, np.array(found["embedding"]), found["times"])


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
