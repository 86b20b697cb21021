"""What is asked of files that a person named."""

import os
import socket

import pytest

from utils.errors import UserError
from utils.files import open_regular


def test_a_regular_file_is_opened_and_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert os.get_blocking(file.fileno()) and file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    for name in ("pipe", "socket", "folder", "device"):
        with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a {name}\)"):
            open_regular(tmp_path / name)
