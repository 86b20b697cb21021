"""Peer of test_mxnet.py. Runs in a Python with MXNet (requirements-mxnet.txt) and does not import torch.

    python mxnet_peer.py write DIR    write peer.rec and peer.idx with MXNet, and their content to peer.json
    python mxnet_peer.py read DIR     read these three files of utils/datasets/recordio; exit with 1 on a difference

peer.json is a list of records in file order: key, label (a number, a list, or null for a record without an image
header), id, id2, and the payload in hexadecimal.
"""

import argparse
import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

MAGIC = (0xCED7230A).to_bytes(4, "little")


def records():
    """Yields (key, label, id, id2, payload) of records of every kind."""
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (12, 12 + i, 3), dtype=np.uint8) for i in range(4)]
    yield 0, [4.0, 6.0], 0, 0, b""
    for key, (image, image_format) in enumerate(zip(images, [".jpg", ".png"] * 2, strict=True), 1):
        label = float(key) if key < 3 else [float(key), 0.1, -1.0]
        packed = mx.recordio.pack_img(mx.recordio.IRHeader(0, label, key, 0), image, img_fmt=image_format)
        yield key, label, key, 0, mx.recordio.unpack(packed)[1]
    yield 5, 93430.0, 2**64 - 1, 2**63 + 1, b"\xff\xd8" + MAGIC + b"\xff\xd9"
    yield 6, [1.0] * 7, 6, 7, MAGIC * 3
    yield 7, float(np.frombuffer(MAGIC, "<f4")[0]), 7, 0, b"a label whose bytes are the magic"
    yield 8, np.frombuffer(MAGIC, "<f4").tolist() * 2, 8, 0, b""
    payloads = [b"", b"a", b"ab", b"abc", b"abcd", MAGIC, MAGIC[:3], b"x" + MAGIC, MAGIC + b"x", b"1234" + MAGIC + b"5"]
    for _ in range(60):
        pieces = rng.integers(0, 9, rng.integers(1, 30))
        payloads.append(b"".join(MAGIC if n == 8 else rng.bytes(int(n)) for n in pieces))
    for key, payload in zip(rng.permutation(1000), payloads, strict=False):
        yield 1000 + int(key), None, 0, 0, payload  # unordered keys with gaps


def write(folder):
    expected = []
    writer = mx.recordio.MXIndexedRecordIO(str(folder / "peer.idx"), str(folder / "peer.rec"), "w")
    for key, label, id_, id2, payload in records():
        packed = payload if label is None else mx.recordio.pack(mx.recordio.IRHeader(0, label, id_, id2), payload)
        writer.write_idx(key, packed)
        expected.append({"key": key, "label": label, "id": id_, "id2": id2, "payload": payload.hex()})
    writer.close()
    (folder / "peer.json").write_text(json.dumps(expected))


def read(folder):
    """Returns the differences between the record file and peer.json, as lines."""
    expected = json.loads((folder / "peer.json").read_text())
    by_key = mx.recordio.MXIndexedRecordIO(str(folder / "peer.idx"), str(folder / "peer.rec"), "r")
    in_order = mx.recordio.MXRecordIO(str(folder / "peer.rec"), "r")
    differences = []
    if by_key.keys != [record["key"] for record in expected]:
        differences.append("the keys differ")
    for record in expected:
        packed = in_order.read()
        if by_key.read_idx(record["key"]) != packed:
            differences.append(f"key {record['key']}: read by key and in order differ")
        payload = packed
        if record["label"] is not None:
            header, payload = mx.recordio.unpack(packed)
            if not np.array_equal(np.asarray(header.label, np.float32), np.asarray(record["label"], np.float32)):
                differences.append(f"key {record['key']}: label {header.label} instead of {record['label']}")
            if (header.id, header.id2) != (record["id"], record["id2"]):
                differences.append(f"key {record['key']}: id {header.id}, id2 {header.id2}")
        if payload.hex() != record["payload"]:
            differences.append(f"key {record['key']}: the payload differs")
    if in_order.read() is not None:
        differences.append("there are more records")
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["write", "read"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.task == "write":
        write(arguments.folder)
        return 0
    differences = read(arguments.folder)
    print("\n".join(differences) or "no difference")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
