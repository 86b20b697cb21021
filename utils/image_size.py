"""The size that an image file announces, asked before a decoder believes it."""

import struct

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD8)}  # JPEG markers with no length behind them
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers of a segment that has the size


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
