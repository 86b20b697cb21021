"""The functions of the page of deploy/web.py, called in a browser."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.browser import Browser
from utils.errors import UserError

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
