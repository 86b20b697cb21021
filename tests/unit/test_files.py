"""Atomic writes that replace links, and the weights file that a folder or a name means."""

import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.checkpoints.weights import CheckpointError, backbone_name, find_backbones, list_backbones
from utils.distillation.cache import TeacherCache
from utils.distributed.process_group import World
from utils.distributed.run_lock import lock_output_dir
from utils.errors import UserError, one_line
from utils.filesystem import (
    open_no_follow,
    open_regular_file,
    walk_files,
    write_atomic,
    write_files,
    write_text_atomic,
)
from utils.logs.logger import init_logging, log

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def linked(tmp_path) -> Path:
    """A link to a file that must not be written to."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    return tmp_path / "link"


def test_a_link_is_replaced(linked):
    write_text_atomic(linked, "new é")
    assert not linked.is_symlink() and linked.read_text(encoding="utf-8") == "new é"
    assert (linked.parent / "precious").read_text() == "precious"
    assert len(list(linked.parent.iterdir())) == 2


def test_any_text_is_written(tmp_path):
    """Bytes of a file name that is not UTF-8 as they are, the rest of the surrogates as escapes."""
    write_text_atomic(tmp_path / "file", "é \udcff\udc80 \ud800 \udc7f \udd00 \udfff 😀")
    assert (
        tmp_path / "file"
    ).read_bytes() == "é ".encode() + b"\xff\x80 \\ud800 \\udc7f \\udd00 \\udfff " + "😀".encode()


def test_files_of_all_folders_below(tmp_path):
    """Once each, through links to folders too, without hidden ones, and without an end in a circle of links."""
    for name in ("a/b/1", "a/2", "3", ".4", "a/.b/5", "other/6"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    (tmp_path / "top" / "other").rename(tmp_path / "other")
    (tmp_path / "top" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "top" / "a" / "again").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "up").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "broken").symlink_to(tmp_path / "none")
    assert sorted(path.name for path in walk_files(tmp_path / "top")) == ["1", "2", "3", "6", "broken"]
    with pytest.raises(FileNotFoundError):
        list(walk_files(tmp_path / "none"))


def test_the_file_has_the_rights_of_a_new_one(tmp_path):
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_fails_leaves_the_old_file(tmp_path):
    def write(file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_name_as_long_as_names_may_be(tmp_path):
    write_text_atomic(tmp_path / ("é" * 127), "text")
    assert (tmp_path / ("é" * 127)).read_text() == "text"


def test_one_file_that_fails_does_not_keep_the_others(tmp_path):
    (tmp_path / "b\n").mkdir()
    writers = {tmp_path / name: lambda path: write_text_atomic(path, "new") for name in ("a", "b\n", "c")}
    with pytest.raises(UserError, match=r"b\\n could not be written \(Is a directory\) and stay as they were; do this"):
        write_files(writers, "do this")
    assert (tmp_path / "a").read_text() == (tmp_path / "c").read_text() == "new"


def test_links_folders_pipes_and_devices_are_not_opened(linked, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path in (linked, tmp_path / "dangling"):
        with pytest.raises(UserError, match="is a symbolic link, which is not written through; remove it"):
            open_no_follow(path, flags)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="should be a regular file"):
            open_no_follow(path, flags)
    assert not (tmp_path / "nowhere").exists()
    os.close(open_no_follow(tmp_path / "new", flags))
    with pytest.raises(FileNotFoundError):
        open_no_follow(tmp_path / "none", os.O_RDONLY)


def test_log_lock_and_cache_follow_no_link(linked, tmp_path):
    before = log.handlers[:], log.propagate, log.level
    try:
        with pytest.raises(UserError, match="link: is a symbolic link"):
            init_logging(linked)
    finally:
        log.handlers, log.propagate, log.level = before
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"\.lock: is a symbolic link"), lock_output_dir(tmp_path, ALONE):
        pass
    made = TeacherCache(tmp_path / "cache", "t", {"a": 1}, 3, 4)
    del made
    for suffix in (".f16", ".crc"):
        (path,) = (tmp_path / "cache").glob(f"*{suffix}")
        path.rename(tmp_path / "kept")
        path.symlink_to(tmp_path / "precious")
        with pytest.raises(UserError, match=rf"\{suffix}: is a symbolic link"):
            TeacherCache(tmp_path / "cache", "t", {"a": 1}, 3, 4)
        path.unlink()
        (tmp_path / "kept").rename(path)
    assert np.all(TeacherCache(tmp_path / "cache", "t", {"a": 1}, 3, 4).checks == 0)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain é 日本.png", "plain é 日本.png"), ("a\nb\x1b[0m\u2028", r"a\nb\x1b[0m\u2028"), ("\udcff", r"\udcff")],
)
def test_names_in_one_line(name, shown):
    assert one_line(Path(name)) == shown


def test_a_regular_file_is_opened_and_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular_file(tmp_path / name) as file:
            assert os.get_blocking(file.fileno()) and file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_regular_file(tmp_path / "none")


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    for name in ("pipe", "socket", "folder", "device"):
        with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a {name}\)"):
            open_regular_file(tmp_path / name)


# -------------------------------------------------------------------------------------------------------------- weights


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def test_the_only_weights_of_a_folder_may_have_any_name(tmp_path):
    folder = folder_of(
        tmp_path, "Net 1.pth", "5header.pth", "header.pth", "checkpoint.pth", "checkpoint.5.pth", ".x.pth"
    )
    assert find_backbones(str(folder), "--x") == {"Net 1": folder / "Net 1.pth"}
    assert find_backbones(str(folder / "Net 1.pth"), "--x") == find_backbones(str(folder / "Net 1"), "--x")
    with pytest.raises(CheckpointError, match=r"no \{global_step\}backbone\.pth in"):
        list_backbones(folder)


def test_steps_count_more_than_other_names(tmp_path):
    folder = folder_of(tmp_path, "best.pth", "12backbone.pth", "007backbone.pth", "xbackbone.pth")
    assert find_backbones(str(folder), "--x") == {"7": folder / "007backbone.pth", "12": folder / "12backbone.pth"}


def test_safetensors_are_found_as_other_weights_are(tmp_path):
    folder = folder_of(tmp_path, "model.safetensors", ".cut.safetensors", "README.md")
    assert find_backbones(str(folder), "--x") == {"model": folder / "model.safetensors"}
    assert find_backbones(str(folder / "model.safetensors"), "--x") == {"model": folder / "model.safetensors"}
    assert find_backbones(str(folder_of(tmp_path, "3backbone.pth")), "--x") == {"3": folder / "3backbone.pth"}


def test_several_other_names_are_listed(tmp_path):
    folder = folder_of(tmp_path, "a.pth", "b.pth", "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"but 3 other files of weights; name one of them: a\.pth, b\.pth, a\.safetensors"
    ):
        find_backbones(str(folder), "--x")


def test_two_files_of_one_step_are_an_error(tmp_path):
    folder = folder_of(tmp_path, "12backbone.pth", "0012backbone.pth")
    for find in (list_backbones, lambda folder: find_backbones(str(folder), "--x")):
        with pytest.raises(CheckpointError, match=r"0012backbone\.pth and 12backbone\.pth in .* are both of step 12"):
            find(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("12backbone.pth", "12"), ("0012backbone.pth", "12"), ("best.pth", "best"), ("bestbackbone.pth", "best"),
        ("12.pth", "12"), ("weights.pt", "weights.pt"), ("backbone.pth", "backbone.pth"), ("a\n.pth", r"a\n"),
    ],
)  # fmt: skip
def test_what_results_are_kept_by(name, key):
    assert backbone_name(Path("folder", name)) == key
