"""Verification sets: every way a .bin is written is read, and nothing of a hostile one runs."""

import codecs
import copyreg
import os
import pickle
import pickletools
import re
import struct
import subprocess
import tracemalloc
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval import verification
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import load_bin_set, load_photo_set
from tests.helpers.paths import SHARED
from utils.datasets.alignment import SIZE
from utils.datasets.verification.bins import decode_images, load_bin, read_bin
from utils.distributed.process_group import World
from utils.errors import UserError

PROTOCOLS = range(6)


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def faces():
    """Six images, three pairs: the first, third and last rows differ so that a swap would show."""
    images = np.zeros((6, SIZE, SIZE, 3), np.uint8)
    images[:, :, :56, 0], images[:, :40, :, 1], images[..., 2] = 250, 120, 7
    images += np.arange(6, dtype=np.uint8)[:, None, None, None]
    return images


@pytest.fixture(scope="module")
def encoded(faces):
    return [png(image) for image in faces]


@pytest.fixture
def write(tmp_path):
    def write_bytes(content):
        path = tmp_path / "set.bin"
        path.write_bytes(content)
        return path

    return write_bytes


FLAGS = [True, False, True]


def binstring(text):
    return b"T" + struct.pack("<i", len(text)) + text


def unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text


def python2_binary(encoded, flags):
    """Returns the bytes that `cPickle.dump((bins, issame), f, protocol=2)` of Python 2 writes."""
    images = b"]q\x01(" + b"".join(binstring(image) for image in encoded) + b"e"
    return b"\x80\x02" + images + b"]q\x02(" + b"".join(b"\x88" if flag else b"\x89" for flag in flags) + b"e\x86q\x03."


def python2_text(encoded, flags):
    """Returns the bytes of protocol 0 of Python 2: quoted strings with escapes, flags as I01 and I00."""
    images = b"".join(b"S'" + codecs.escape_encode(image)[0] + b"'\np%d\na" % n for n, image in enumerate(encoded, 2))
    return b"((lp1\n" + images + b"(lp0\n" + b"".join(b"I0%d\na" % flag for flag in flags) + b"tp99\n."


def arrays(encoded):
    return [np.frombuffer(image, np.uint8) for image in encoded]


def object_array(items):
    array = np.empty(len(items), object)
    array[:] = items
    return array


FLAVOURS = {
    "bytes": lambda images: (images, FLAGS),
    "lists": lambda images: [images, FLAGS],
    "tuples": lambda images: (tuple(images), tuple(FLAGS)),
    "bytearrays": lambda images: ([bytearray(image) for image in images], FLAGS),
    "arrays": lambda images: (arrays(images), FLAGS),
    "writable arrays": lambda images: ([array.copy() for array in arrays(images)], FLAGS),
    "columns": lambda images: ([array[:, None].copy() for array in arrays(images)], FLAGS),
    "numpy bools": lambda images: (images, [np.bool_(flag) for flag in FLAGS]),
    "numpy ints": lambda images: (images, [np.int64(flag) for flag in FLAGS]),
    "ints": lambda images: (images, [int(flag) for flag in FLAGS]),
    "array of bools": lambda images: (arrays(images), np.array(FLAGS)),
    "array of ints": lambda images: (arrays(images), np.array(FLAGS, dtype="<i8")),
    "floats": lambda images: (images, [float(flag) for flag in FLAGS]),
    "numpy floats": lambda images: (images, [np.float64(flag) for flag in FLAGS]),
    "array of floats": lambda images: (images, np.array(FLAGS, np.float32)),
    "array of halves": lambda images: (images, np.array(FLAGS, ">f2")),
    "array of objects": lambda images: (np.array(images, object), np.array(FLAGS, object)),
    "array of objects, floats": lambda images: (np.array(images, object), np.array([1.0, 0, 1], object)),
    "array of array objects": lambda images: (object_array(arrays(images)), FLAGS),
    "array of big-endian ints": lambda images: (arrays(images), np.array(FLAGS, dtype=">i4")),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavours(write, encoded, flavour, protocol):
    images, issame = read_bin(write(pickle.dumps(FLAVOURS[flavour](encoded), protocol)))
    assert images == encoded
    assert all(type(image) is bytes for image in images)
    assert issame.dtype == bool
    assert issame.tolist() == FLAGS


@pytest.mark.parametrize("dump", [python2_binary, python2_text])
def test_python2(write, encoded, dump):
    images, issame = read_bin(write(dump(encoded, FLAGS)))
    assert images == encoded
    assert issame.tolist() == FLAGS


def test_python2_numpy(write, encoded):
    """numpy under Python 2 at protocol 2: dtype, order and data are byte strings."""
    dtype = b"cnumpy\ndtype\n" + binstring(b"u1") + b"K\x00K\x01\x87R(K\x03" + binstring(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + binstring(b"b") + b"\x87R"
    images = b"".join(
        array + b"(K\x01J" + struct.pack("<i", len(image)) + b"\x85" + dtype + b"\x89" + binstring(image) + b"tb"
        for image in encoded
    )
    content = b"\x80\x02](" + images + b"e](\x88\x89\x88e\x86."
    assert read_bin(write(content))[0] == encoded


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_either_numpy(write, encoded, module):
    """numpy 1 and numpy 2 name their modules differently; both are read by both."""
    content = pickle.dumps((arrays(encoded), np.array(FLAGS)), 2)
    for name in (b"numpy._core", b"numpy.core"):
        content = content.replace(name, module.encode())
    assert read_bin(write(content))[0] == encoded


def test_shared_images(write, encoded):
    """One bytes object in several pairs is one object after reading too."""
    images = [encoded[0], encoded[1], encoded[0], encoded[2]]
    read = read_bin(write(pickle.dumps((images, [True, False]), 2)))[0]
    assert read == images
    assert read[0] is read[2]


def test_load_bin(write, encoded, faces):
    images, issame = load_bin(write(pickle.dumps((encoded, FLAGS), 4)))
    np.testing.assert_array_equal(images, faces)
    assert images.dtype == np.uint8
    assert issame.tolist() == FLAGS
    assert verification.load_bin is load_bin


@pytest.mark.parametrize("threads", [1, 3, None])
def test_decode_keeps_the_order(encoded, faces, threads):
    order = np.random.default_rng(0).integers(0, 6, 150)
    np.testing.assert_array_equal(decode_images([encoded[n] for n in order], threads), faces[order])


@pytest.mark.parametrize("shape", [(224, 224), (56, 56), (160, 120), (100, 130), (112, 150), (150, 112), (113, 112)])
def test_other_sizes(shape):
    """The short side becomes 112, the centre is kept: a mark in the middle stays there."""
    image = np.zeros((*shape, 3), np.uint8)
    image[..., 0] = 200
    middle = [slice(side // 2 - side // 8, side // 2 + side // 8) for side in shape]
    image[(*middle, 2)] = 255
    (face,) = decode_images([png(image)])
    assert face.shape == (112, 112, 3)
    assert (face[..., 0] == 200).all()
    rows, columns = np.nonzero(face[..., 2] > 127)
    assert abs(rows.mean() - 55.5) < 1.2
    assert abs(columns.mean() - 55.5) < 1.2


def test_resized_as_opencv_does():
    image = np.random.default_rng(1).integers(0, 256, (140, 160, 3), np.uint8)
    expected = cv2.resize(image, (128, 112), interpolation=cv2.INTER_CUBIC)[:, 8:120]
    np.testing.assert_array_equal(decode_images([png(image)])[0], expected)


def test_grey_and_jpeg():
    grey = np.tile(np.arange(112, dtype=np.uint8), (112, 1))
    (face,) = decode_images([cv2.imencode(".png", grey)[1].tobytes()])
    np.testing.assert_array_equal(face, np.repeat(grey[..., None], 3, axis=2))
    (face,) = decode_images([cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()])
    assert np.abs(face[..., 1].astype(int) - grey).max() < 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"a"] * 3, [True, False]), "3 images for 2 pairs"),
        (([], []), "the set is empty"),
        (([b"a"] * 2, [2]), "flag 0 is 2; flags should be true or false"),
        (([b"a"] * 4, [1.0, 0.5]), "flag 1 is 0.5; flags should be true or false"),
        (([b"a"] * 2, [float("nan")]), "flag 0 is nan; flags should be true or false"),
        (([b"a"] * 2, [None]), "flag 0 is of type NoneType; flags should be true or false"),
        (([b"a"] * 2, ["true"]), "flag 0 is of type str; flags should be true or false"),
        (([b"a"] * 2, [10**4000]), "flag 0 is of type int; flags should be true or false"),
        (([b"a"] * 2, True), "the flags are not a list; they should be true or false"),
        (([b"a"] * 2, np.array([[True]])), "the flags are not a list; they should be true or false"),
        (([b"a"] * 2, np.array([3])), "flag 0 is 3; flags should be true or false"),
        (([b"a"] * 2, np.array([0.25])), "flag 0 is 0.25; flags should be true or false"),
        (([b"a", np.zeros((4, 5, 3), np.uint8)], [1]), "image 1 is an array of uint8 4×5×3, not the bytes of an image"),
        (([b"a", np.zeros(9, np.float32)], [1]), "image 1 is an array of float32 9, not the bytes of an image"),
        (([b"a", np.array([None])], [1]), "image 1 is an array of object 1, not the bytes of an image"),
        (([{"image": b"a"}] * 2, [True]), "refused: it holds a dict; a verification set is a pickled pair"),
        (({1, 2}, [True]), "refused: it holds (a set|'(__builtin__|builtins).set'); a verification set is a"),
        (([Path("a.jpg")] * 2, [True]), "refused: it holds .*Path.*; a verification set is a pickled pair"),
        (([b"a", "a"], [True]), "image 1 is of type str"),
        (([b"a", 7], [True]), "image 1 is of type int"),
        ((b"aa", [True]), "the images are not a list"),
        (([b"a"] * 2, [True], []), "a pair"),
        ([1, 2], "images are not a list"),
        (7, "not a verification set"),
        (([b"a"] * 2, [True]), "image 0 of 2 cannot be decoded"),
        (([b"", b""], [True]), "image 0 of 2 cannot be decoded"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_wrong_content(write, content, message, protocol):
    path = write(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=message) as caught:
        load_bin(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_slice_is_decoded_alone_and_its_errors_have_the_index_in_the_set(encoded, faces):
    images = [*encoded[:5], b"no image"]
    np.testing.assert_array_equal(decode_images(images, part=slice(2, 5)), faces[2:5])
    with pytest.raises(UserError, match=r"^here: image 5 of 6 cannot be decoded"):
        decode_images(images, name=lambda i: f"here: image {i} of {len(images)}", part=slice(3, 6))


def test_decoding_has_a_line_every_minute(tmp_path, encoded, log_capture, slow_clock):
    """For a set and for photos, on the main process alone."""
    images = [encoded[0] + bytes(i) for i in range(100)]  # all different
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, [True, False] * 25)))
    (tmp_path / "photo.png").write_bytes(encoded[0])
    pairs = np.arange(100).reshape(-1, 2)
    own = PhotoPairs("own", [tmp_path / "photo.png"] * 100, pairs, np.array([True, False] * 25))
    for load, name in ((partial(load_bin_set, tmp_path / "lfw.bin"), "lfw"), (partial(load_photo_set, own), "own")):
        log_capture.clear()
        load(World(0, 1, torch.device("cpu")))
        assert re.findall(rf"Decoding {name}: (\d+) of 100 images, [\d.]+ minutes to go", log_capture.text) == [
            "48",
            "96",
        ]
        load(World(1, 2, torch.device("cpu")))
        assert log_capture.text.count("Decoding") == 2


def test_undecodable_image_is_named(write, encoded):
    images = encoded * 40
    images[133] = images[133][: len(images[133]) // 2]
    images[201] = b"no image"
    with pytest.raises(UserError, match=r"set\.bin: image 133 of 240 cannot be decoded"):
        load_bin(write(pickle.dumps((images, FLAGS * 40), 2)))


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"lfw\.bin: cannot be read: No such file"):
        load_bin(tmp_path / "lfw.bin")
    with pytest.raises(UserError, match=r"is not a regular file \(a folder\)"):
        load_bin(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(UserError, match=r"pipe\.bin: is not a regular file \(a pipe\)"):
        load_bin(tmp_path / "pipe.bin")


@pytest.mark.parametrize("content", [b"", b"\x80", b"hello\n", b"\x89PNG\r\n\x1a\n", b"\xff" * 100, b"\x80\x7f.", b"."])
def test_no_pickle(write, content):
    with pytest.raises(UserError, match=r"set\.bin: (not a verification set|refused)") as caught:
        load_bin(write(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cut_short_or_damaged(write, protocol):
    """Each prefix is a one-line error; a file with a changed byte is read or is a one-line error."""
    content = pickle.dumps((arrays([b"abcd", b"efgh"]), [np.bool_(True)]), protocol)
    rng = np.random.default_rng(protocol)
    for length in rng.permutation(len(content))[:60]:
        with pytest.raises(UserError):
            read_bin(write(content[:length]))
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        try:
            read_bin(write(bytes(damaged)))
        except UserError as error:
            assert "\n" not in str(error)


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def assert_refused(path, canary, asked):
    with pytest.raises(UserError, match=asked) as caught:
        load_bin(path)
    assert str(caught.value).startswith(f"{path}: refused")
    assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.fixture
def canary(tmp_path):
    """A file that every hostile pickle here would make."""
    return tmp_path / "canary"


def test_the_canary_sings(write, canary):
    """The hostile pickles do run where Python reads them."""
    path = write(pickle.dumps(Evil(os.system, f"touch {canary}")))
    with path.open("rb") as file:
        pickle.load(file)
    assert canary.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["whole", "image", "flag", "array", "flag array"])
def test_calls_are_refused(write, encoded, canary, place, protocol):
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    for evil, name in [
        (Evil(os.system, touch), "system"),
        (Evil(eval, code), "eval"),
        (Evil(exec, code), "exec"),
        (Evil(getattr, "os", "system"), "getattr"),
        (Evil(subprocess.getoutput, touch), "getoutput"),
        (Evil(open, str(canary), "w"), "open"),
        (Evil(Path.touch, canary), "getattr|Path.touch"),
    ]:
        content = {
            "whole": evil,
            "image": ([evil, *encoded[1:]], FLAGS),
            "flag": (encoded, [evil, False, True]),
            "array": ([np.array([evil], dtype=object), *encoded[1:]], FLAGS),
            "flag array": (encoded, np.array([evil, evil, evil])),
        }[place]
        assert_refused(write(pickle.dumps(content, protocol)), canary, name)


def global_(module, name):
    return b"c" + module + b"\n" + name + b"\n"


def test_opcodes_are_refused(write, canary):
    touch = unicode(f"touch {canary}".encode())
    encode = global_(b"_codecs", b"encode")
    copyreg.add_extension("os", "system", 77)
    try:
        for content, asked in [
            (b"\x80\x02" + global_(b"os", b"system") + touch + b"\x85R.", "'os.system'"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + touch + b"\x85R.", "'posix.system'"),
            (b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n.", "'os.system'"),  # INST
            (b"(" + global_(b"os", b"system") + touch + b"o.", "'os.system'"),  # OBJ
            (b"(" + encode + touch + b"o.", "it holds an object of a Python class"),
            (b"\x80\x02\x82\x4d" + touch + b"\x85R.", "it holds an object stored outside the file"),
            (b"\x80\x02\x83\x4d\x00" + touch + b"\x85R.", "it holds an object stored outside the file"),
            (b"\x80\x02\x84\x4d\x00\x00\x00" + touch + b"\x85R.", "it holds an object stored outside the file"),
            (b"Pcanary\n.", "it holds an object stored outside the file"),
            (touch + b"Q.", "it holds an object stored outside the file"),
            (global_(b"numpy", b"dtype") + b")\x81.", "it holds an object of a Python class"),
            (global_(b"numpy", b"dtype") + b")}\x92.", "it holds a dict"),
            (b"\x80\x05\x97.", "it holds an object stored outside the file"),
            (encode + b"(tb.", "it holds the state of an object"),
            (global_(b"numpy", b"dtype") + b"(tb.", "it holds the state of an object"),
            (b"](tb.", "it holds the state of an object"),
            (b"\x80\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93.", "'_codecs.encode.__self__'"),
            (global_(b"numpy", b"load") + touch + b"\x85R.", "'numpy.load'"),
            (global_(b"numpy.core.multiarray", b"fromfile") + touch + b"\x85R.", "'numpy.core.multiarray.fromfile'"),
            (global_(b"_codecs", b"lookup") + touch + b"\x85R.", "'_codecs.lookup'"),
            (global_(b"__builtin__", b"eval") + touch + b"\x85R.", "'__builtin__.eval'"),
            (global_(b"a" * 100_000, b"b"), "'aaaa"),
        ]:
            assert_refused(write(content), canary, asked)
    finally:
        copyreg.remove_extension("os", "system", 77)


@pytest.mark.parametrize("codec", ["rot13", "zip", "utf-8", "unicode_escape", ""])
def test_other_codecs_are_refused(write, canary, codec):
    content = global_(b"_codecs", b"encode") + unicode(b"touch") + unicode(codec.encode()) + b"\x86R."
    assert_refused(write(content), canary, "the bytes of an object of type str in codec")
    content = global_(b"__builtin__", b"bytearray") + b"J\xff\xff\xff\x7f\x85R."  # bytearray(2**31 - 1)
    assert_refused(write(content), canary, "the bytes of an object of type int")


def test_arrays_of_other_kinds_are_refused(write, canary):
    for protocol in PROTOCOLS:
        for array in (
            np.array([1j]),
            np.zeros(2, "u1,i4"),
            np.array(["2020"], "M8"),
            np.array(["a"]),
        ):
            assert_refused(write(pickle.dumps(([array], [True]), protocol)), canary, "array of dtype '")


def test_memory_bombs(write, encoded):
    """Claims of more than the file holds cost no memory."""
    array = pickle.dumps(np.zeros(300, np.uint8), 2)
    shape = pickle.dumps(300, 2)[2:-1]
    bombs = [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",  # BINBYTES8
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.",  # BYTEARRAY8
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].",  # FRAME
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"].",  # BINUNICODE8
        array.replace(shape, b"\x8a\x08" + struct.pack("<q", 2**60)),
        b"](" + b"]" * 200_000 + b"e.",
        b"]" * 200_000 + b"a" * 199_999 + b".",
        b"(" * 200_000 + b"." * 10,
        b"X" + struct.pack("<I", 500_000) + b"a" * 500_000 + b"q\x00" + unicode(b"latin1") + b"q\x01"
        b"c_codecs\nencode\nq\x02](" + b"h\x02h\x00h\x01\x86R" * 20_000 + b"e\x86.",  # one text encoded 20,000 times
    ]  # fmt: skip
    assert shape in array
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(UserError):
            read_bin(write(bomb))
    far_memo = (
        pickletools.optimize(pickle.dumps((encoded, FLAGS), 2))[:-1] + b"r\xff\xff\xff\x7f."
    )  # LONG_BINPUT 2**31-1
    assert read_bin(write(far_memo))[0] == encoded
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


@pytest.mark.parametrize(("name", "same"), [("faces_cfp/cfp_ff.bin", 1500), ("lfw/lfw.bin", 3000)])
def test_real_sets(name, same):
    """A set written by Python 3 at protocol 2, with shared images, and one by Python 2."""
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"the real verification set {name} is not at {SHARED}/data")
    encoded, issame = read_bin(path)
    assert (len(encoded), len(issame), issame.sum()) == (4 * same, 2 * same, same)
    assert {image[:2] for image in encoded} == {b"\xff\xd8"}  # JPEG
    faces = decode_images(encoded[::50])
    assert faces.shape == (len(encoded) // 50, 112, 112, 3)
    assert faces.std(axis=(1, 2, 3)).min() > 10
