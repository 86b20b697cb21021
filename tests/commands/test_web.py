"""deploy/web.py: the files of a page, and what it cannot be written from."""

import json
import sys

import onnx
import pytest

from deploy.web import RUNTIME_FILES, SOURCES
from tests.helpers.commands import run_command
from tests.helpers.networks import set_threshold, write_network, write_onnx
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exported networks, and a stand-in for the npm package, whose files are only copied."""
    folder = tmp_path_factory.mktemp("web")
    write_onnx(folder / "net.onnx", cosine=0.4)
    content = (folder / "net.onnx").read_bytes()
    (folder / "plain.onnx").write_bytes(content)
    set_threshold(folder / "plain.onnx", None)
    (folder / "broken.onnx").write_bytes(content[:5000])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 160, 160]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "large.onnx")
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    (folder / "package" / "dist").mkdir(parents=True)
    for name in RUNTIME_FILES:
        (folder / "package" / "dist" / name).write_text(name)
    return folder


def web(folder, *arguments):
    return run_command(folder, sys.executable, "-m", "deploy.web", *arguments, PYTHONPATH=str(ROOT))


def test_a_page_is_written_and_written_again(folder):
    for far in ("1e-3", "0.001"):
        done = web(folder, "page", "--model", "net.onnx", "--runtime", "package", "--far", far)
        assert (done.returncode, done.stderr) == (0, "")
    assert "python -m http.server --bind 127.0.0.1 --directory page" in done.stdout
    page = folder / "page"
    files = {str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()}
    networks = {f"networks/{name}.onnx" for name in ("detector", "mesh", "network")}
    assert files == {*SOURCES, *networks, *(f"onnxruntime-web/{name}" for name in RUNTIME_FILES), "settings.json"}
    assert (page / "networks" / "network.onnx").stat().st_size == (folder / "net.onnx").stat().st_size
    settings = json.loads((page / "settings.json").read_text())
    assert settings["input"] == {"pixels": "uint8", "layout": "NHWC"} and settings["embedding_size"] == 32
    assert (settings["threshold"], settings["far"], settings["set"]) == (0.4, 0.001, "demo")


def test_every_file_of_the_page_is_written():
    files = {path.name for path in (ROOT / "deploy" / "page").iterdir() if path.is_file()}
    assert files - {"package.json", "package-lock.json"} == set(SOURCES)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["page2", "--model", "run"],
            "--model run: is not an .onnx file; python -m deploy.export --to onnx writes",
        ),
        (["page2", "--model", "missing.onnx"], "missing.onnx: no such file"),
        (["page2", "--model", "broken.onnx"], "broken.onnx: cannot be opened ("),
        (
            ["page2", "--model", "large.onnx"],
            "large.onnx: has an input of 3×160×160 and several outputs, expected",
        ),
        (["page2", "--model", "plain.onnx"], "--model plain.onnx: there are no thresholds in it; evaluate the"),
        (["page2", "--model", "net.onnx", "--far", "1e-6"], "no threshold at FAR 1e-06; there are 0.001"),
        (["page2", "--model", "net.onnx", "--set", "lfw"], "no thresholds of the set 'lfw'; there are demo"),
        (["page2", "--model", "net.onnx", "--runtime", "other"], "ort.wasm.min.mjs is missing; npm install --prefix"),
        (["page2"], "the following arguments are required: --model"),
        (["other", "--model", "net.onnx"], "other: exists already, and is no earlier page; name another folder"),
        (["file", "--model", "net.onnx"], "file: exists already, and is no earlier page; name another folder"),
        (["file/page", "--model", "net.onnx"], "file/page: Not a directory; name another folder"),
        (["/proc/page", "--model", "net.onnx"], "/proc/page: No such file or directory; name another folder"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, error):
    write_network(folder / "run")
    runtime = [] if "--runtime" in arguments else ["--runtime", "package"]
    done = web(folder, *arguments, *runtime)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert error in done.stderr and not (folder / "page2").exists()
