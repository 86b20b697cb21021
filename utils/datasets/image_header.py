"""Reads the size that an image file announces, so that it can be checked before decoding."""

import re
import struct

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # file formats that image_size and training read

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD8)}  # JPEG markers that no length follows
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers of the segments that hold the size

_PNM_HEADER = re.compile(rb"P[1-6](?:\s+|#[^\n\r]*[\n\r])+(\d{1,9})(?:\s+|#[^\n\r]*[\n\r])+(\d{1,9})\s")
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # integer types of a TIFF tag's value


def read_photo_size(image: bytes) -> tuple[int, int] | None:
    """Returns the width and height that a photo's file header announces, None for any other file.

    Knows the formats of `read_image_size`, and also GIF, TIFF and PNM (PBM, PGM, PPM).
    """
    try:
        if image.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", image, 6)
            return width, height
        if image.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff_size(image)
    except (struct.error, LookupError):  # truncated
        return None
    if match := _PNM_HEADER.match(image):
        return int(match[1]), int(match[2])
    return read_image_size(image)


def read_image_size(image: bytes) -> tuple[int, int] | None:
    """Returns the width and height that the file header of a JPEG, PNG, BMP or WebP announces, None for any other file.

    Call it before decoding: a few bytes can announce gigabytes, and decoders allocate them. For the same reason it
    returns None for a PNG with a chunk longer than the file.
    """
    try:
        if image.startswith(_JPEG):
            return _jpeg_size(image)
        if image.startswith(_PNG):
            return _png_size(image)
        if image.startswith(b"BM"):
            width, height = struct.unpack_from("<HH" if image[14:18] == b"\x0c\0\0\0" else "<ii", image, 18)
            return abs(width), abs(height)  # a negative height means rows from top to bottom
        if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
            return _webp_size(image)
    except (struct.error, IndexError):  # truncated
        pass
    return None


def find_suffix(image: bytes) -> str:
    """Returns the suffix of the format that an image file begins with: .jpg, .png, .bmp, .webp, or "" for any other."""
    starts = {_JPEG: ".jpg", _PNG: ".png", b"BM": ".bmp"}
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in starts.items() if image.startswith(start)), "")


def _png_size(image: bytes) -> tuple[int, int]:
    offset = len(_PNG)
    while image[offset + 4 : offset + 8] != b"IEND":
        offset += 12 + struct.unpack_from(">I", image, offset)[0]  # length, type, content, checksum
    width, height = struct.unpack_from(">II", image, 16)
    return width, height


def _jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Walks the segments as libjpeg does, up to the first frame, which is the one it decodes."""
    offset = 2
    while (offset := image.find(b"\xff", offset)) >= 0:
        while image[offset] == 0xFF:
            offset += 1
        marker = image[offset]
        offset += 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", image, offset + 3)
            return width, height
        if marker not in _NO_SEGMENT:
            offset += max(2, int.from_bytes(image[offset : offset + 2], "big"))
    return None


def _webp_size(image: bytes) -> tuple[int, int] | None:
    chunk = image[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(image[offset : offset + 3], "little") for offset in (24, 27))
        return width + 1, height + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", image, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", image, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(image: bytes) -> tuple[int, int]:
    """Reads the first directory of a TIFF or BigTIFF. Returns the tile size where tiles are larger than the image."""
    byte_order = "<" if image.startswith(b"II") else ">"
    if image[2:4] in (b"*\0", b"\0*"):
        offset_type, count_type, tag_size, value_offset = "I", "H", 12, 8
        (directory,) = struct.unpack_from(byte_order + offset_type, image, 4)
    else:
        offset_type, count_type, tag_size, value_offset = "Q", "Q", 20, 12
        (directory,) = struct.unpack_from(byte_order + offset_type, image, 8)
    (count,) = struct.unpack_from(byte_order + count_type, image, directory)
    first_entry = directory + struct.calcsize(count_type)
    values: dict[int, int] = {}
    for entry in range(first_entry, first_entry + min(count, 4096) * tag_size, tag_size):
        tag, value_type = struct.unpack_from(byte_order + "HH", image, entry)
        if tag in (256, 257, 322, 323):  # width and height of the image and of a tile
            (values[tag],) = struct.unpack_from(byte_order + _TIFF_TYPES[value_type], image, entry + value_offset)
    width, height = values[256], values[257]
    return max(width, values.get(322, 0)), max(height, values.get(323, 0))
