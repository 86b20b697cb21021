"""The size that an image file announces, asked before a decoder believes it."""

import re
import struct

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of the files that image_size knows, which training reads

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD8)}  # JPEG markers with no length behind them
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers of a segment that has the size

_PNM_HEAD = re.compile(rb"P[1-6](?:\s+|#[^\n\r]*[\n\r])+(\d{1,9})(?:\s+|#[^\n\r]*[\n\r])+(\d{1,9})\s")
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # integer types of a TIFF tag's value


def photo_size(image: bytes) -> tuple[int, int] | None:
    """Return the width and height that the head of a photo announces, None for anything else: what `image_size` knows,
    and GIF, TIFF and PBM, PGM or PPM (PNM)."""
    try:
        if image.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", image, 6)
            return width, height
        if image.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff_size(image)
    except (struct.error, LookupError):  # cut short
        return None
    if match := _PNM_HEAD.match(image):
        return int(match[1]), int(match[2])
    return image_size(image)


def image_size(image: bytes) -> tuple[int, int] | None:
    """Return the width and height that the head of a JPEG, PNG, BMP or WebP file announces, None for anything else.

    To be asked before decoding: a few bytes can announce gigabytes, and decoders believe them. For the same reason a
    PNG with a chunk longer than the file counts as anything else.
    """
    try:
        if image.startswith(_JPEG):
            return _jpeg_size(image)
        if image.startswith(_PNG):
            return _png_size(image)
        if image.startswith(b"BM"):
            width, height = struct.unpack_from("<HH" if image[14:18] == b"\x0c\0\0\0" else "<ii", image, 18)
            return abs(width), abs(height)  # a negative height: stored from top to bottom
        if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
            return _webp_size(image)
    except (struct.error, IndexError):  # cut short
        pass
    return None


def _png_size(image: bytes) -> tuple[int, int]:
    at = len(_PNG)
    while image[at + 4 : at + 8] != b"IEND":
        at += 12 + struct.unpack_from(">I", image, at)[0]  # length, kind, content, checksum
    width, height = struct.unpack_from(">II", image, 16)
    return width, height


def _jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Walk the segments as libjpeg does, up to the first frame, the one it decodes."""
    at = 2
    while (at := image.find(b"\xff", at)) >= 0:
        while image[at] == 0xFF:
            at += 1
        marker = image[at]
        at += 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", image, at + 3)
            return width, height
        if marker not in _NO_SEGMENT:
            at += max(2, int.from_bytes(image[at : at + 2], "big"))
    return None


def _webp_size(image: bytes) -> tuple[int, int] | None:
    kind = image[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(image[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", image, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", image, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(image: bytes) -> tuple[int, int]:
    """Read the first directory of a TIFF or BigTIFF; the size of a tile where tiles are larger than the image."""
    order = "<" if image.startswith(b"II") else ">"
    if image[2:4] in (b"*\0", b"\0*"):
        head, count_type, tag_size, value_at = "I", "H", 12, 8
        (at,) = struct.unpack_from(order + head, image, 4)
    else:
        head, count_type, tag_size, value_at = "Q", "Q", 20, 12
        (at,) = struct.unpack_from(order + head, image, 8)
    (count,) = struct.unpack_from(order + count_type, image, at)
    first = at + struct.calcsize(count_type)
    found: dict[int, int] = {}
    for start in range(first, first + min(count, 4096) * tag_size, tag_size):
        tag, kind = struct.unpack_from(order + "HH", image, start)
        if tag in (256, 257, 322, 323):  # width and height of the image, and of a tile
            (found[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], image, start + value_at)
    width, height = found[256], found[257]
    return max(width, found.get(322, 0)), max(height, found.get(323, 0))
