"""Configs: what loads, what overrides do, and that every mistake is one line that names it."""

import json
import os
import subprocess
import sys

import pytest

import config as config_package
from config import ConfigError, load_config, require_data, shipped_configs
from config.base import config as base
from tests.conftest import GOLDEN, PUBLISHED_CONFIG, ROOT

S128 = ROOT / "config" / "config_PocketNetS128.py"
SCHEDULE = json.loads((GOLDEN / "schedule.json").read_text())


def refused(*overrides: str, path=S128) -> str:
    """The message of the ConfigError that loading raises; always a single line."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(tmp_path, text: str):
    path = tmp_path / "config_own.py"
    path.write_text("from easydict import EasyDict\nconfig = EasyDict()\n" + text)
    return path


@pytest.mark.parametrize(
    ("name", "channel", "n_layers", "embedding"),
    [
        ("PocketNetS128", 16, 18, 128),
        ("PocketNetS256", 16, 18, 256),
        ("PocketNetM128", 32, 9, 128),
        ("PocketNetM256", 32, 9, 256),
    ],
)
def test_shipped_pocketnets_have_the_published_numbers(name, channel, n_layers, embedding):
    config = load_config(ROOT / "config" / f"config_{name}.py")
    assert (config.channel, config.n_layers, config.embedding_size) == (channel, n_layers, embedding)
    assert (config.num_classes, config.num_image, config.num_epoch, config.batch_size) == (85742, 5822653, 26, 128)
    assert (config.lr, config.momentum, config.weight_decay, config.clip_norm) == (0.1, 0.9, 5e-4, 5.0)
    assert (config.s, config.m, config.w, config.genotype) == (64.0, 0.5, 100.0, "softmax_casia")
    assert [config.lr_func(epoch) for epoch in range(26)] == SCHEDULE["PocketNetS128"]["lr_factor"]


def test_the_promised_configs_are_shipped_and_load():
    names = {path.stem.removeprefix("config_") for path in shipped_configs()}
    assert {"PocketNetS128", "PocketNetS256", "PocketNetM128", "PocketNetM256", "demo"} <= names
    teachers = [load_config(ROOT / "config" / f"config_iresnet100{suffix}.py") for suffix in ("", "_256")]
    assert [teacher.embedding_size for teacher in teachers] == [128, 256]
    for path in shipped_configs():
        assert set(load_config(path)) == set(base)


def test_a_published_config_loads_unchanged_from_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(config_package, "FOLDER", tmp_path)
    (tmp_path / "config.py").write_text(PUBLISHED_CONFIG)
    config = load_config()
    assert (config.embedding_size, config.channel, config.n_layers, config.w) == (256, 32, 9, 100.0)
    assert config.val_targets == ["lfw", "cfp_fp"] and config.teacher_network == "resnet100"
    assert [config.lr_func(epoch) for epoch in range(26)] == SCHEDULE["PocketNetM256"]["lr_factor"]
    with pytest.raises(ConfigError, match="this config file defines lr_func"):
        load_config(overrides=["warmup_epoch=2"])


def test_every_published_field_keeps_its_value(tmp_path):
    (tmp_path / "published.py").write_text(PUBLISHED_CONFIG)
    namespace = {}
    exec(PUBLISHED_CONFIG, namespace)
    config, given = load_config(tmp_path / "published.py"), namespace["config"]
    assert len(given) == 29 and set(given) <= set(base)
    assert [name for name in given if name != "lr_func" and config[name] != given[name]] == []


def test_a_file_copied_again_within_the_second_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(config_package, "FOLDER", tmp_path)
    for size in (128, 256):
        text = f"from easydict import EasyDict\nconfig = EasyDict(embedding_size={size})\n"
        (tmp_path / "config.py").write_text(text)
        os.utime(tmp_path / "config.py", (1, 1))
        assert load_config().embedding_size == size


def test_no_config_lists_those_there_are_and_shows_the_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(config_package, "FOLDER", tmp_path)
    (tmp_path / "config_PocketNetS128.py").write_text("")
    message = refused(path=None)
    assert "config/config.py is missing" in message and "one of config_PocketNetS128.py" in message
    assert "cp config/config_PocketNetS128.py config/config.py" in message


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("lr=1", "lr", 1.0),
        ("weight_decay=1e-3", "weight_decay", 1e-3),
        ("batch_size=64", "batch_size", 64),
        ("config.batch_size=64", "batch_size", 64),
        ("compile=True", "compile", True),
        ("compile=1", "compile", True),
        ("compile=TRUE", "compile", True),
        ("compile=0", "compile", False),
        ("compile=false", "compile", False),
        ("val_targets=lfw,cfp_ff", "val_targets", ["lfw", "cfp_ff"]),
        ("val_targets=['lfw', 'cfp_ff']", "val_targets", ["lfw", "cfp_ff"]),
        ("lr_steps=3, 5", "lr_steps", [3, 5]),
        ("lr_steps=[3]", "lr_steps", [3]),
        ("lr_steps=3,5,", "lr_steps", [3, 5]),
        ("lr_steps=", "lr_steps", []),
        ("output=a folder/x=1", "output", "a folder/x=1"),
        ("dataset=", "dataset", ""),
    ],
)
def test_overrides_take_the_type_of_the_default(override, name, value):
    got = load_config(S128, [override])[name]
    assert got == value and type(got) is type(value)


def test_lr_steps_and_warm_up_make_the_schedule():
    config = load_config(S128, ["warmup_epoch=2", "lr_steps=3"])
    assert [config.lr_func(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.16, 1, 0.1, 0.1])


def test_defaults_are_not_shared_between_configs():
    first = load_config(S128)
    first.lr_steps.append(99)
    first.genotypes["softmax_casia"] = "changed"
    assert 99 not in load_config(S128).lr_steps and 99 not in base.lr_steps
    assert load_config(S128).genotypes["softmax_casia"] != "changed"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("embeding_size=64", ["embeding_size", "'64'", "'embedding_size'"]),
        ("Rec=x", ["Rec", "'x'", "'rec'"]),
        ("lr=fast", ["lr", "float", "'fast'"]),
        ("batch_size=1.5", ["batch_size", "int", "1.5"]),
        ("batch_size=True", ["batch_size", "int", "True"]),
        ("compile=3", ["compile", "bool", "'3'"]),
        ("lr_steps=1,x", ["lr_steps", "list of int", "'x'"]),
        ("val_targets=[1]", ["val_targets", "list of str", "[1]"]),
        ("val_targets=lfw,,cfp_fp", ["val_targets", "names", "['lfw', '', 'cfp_fp']"]),
        ("val_targets=['lfw', ' ']", ["val_targets", "names", "['lfw', ' ']"]),
        ("lr_steps=7,,13", ["lr_steps", "list of int", "[7, '', 13]"]),
        ("lr_steps={[]: 1}", ["lr_steps", "list", "'{[]: 1}'"]),
        ("LR_STEPS=3", ["LR_STEPS", "'3'", "'lr_steps'"]),
        ("batch size=3", ["batch size", "'3'", "'batch_size'"]),
        ("lr\n=3", ["lr", "'3'", "'lr'"]),
        ("genotypes=x", ["genotypes", "dict", "'x'"]),
        ("lr_func=x", ["lr_func", "config file"]),
        ("lr", ["'lr'", "field=value"]),
        ("=1", ["no such field", "'1'"]),
        ("embedding_size=0", ["embedding_size", "at least 1", "0"]),
        ("n_layers=3", ["n_layers", "at least 4", "3"]),
        ("num_epoch=0", ["num_epoch", "at least 1", "0"]),
        ("batch_size=-8", ["batch_size", "at least 1", "-8"]),
        ("lr=1e999", ["lr", "finite", "inf"]),
        ("lr=nan", ["lr", "float", "'nan'"]),
        ("lr=1" + 400 * "0", ["lr", "finite", "1329 bits"]),
        ("lr=1" + 20_000 * "+1", ["lr", "float", "'1+1"]),
        ("lr=-0.1", ["lr", "at least 0", "-0.1"]),
        ("m=2", ["m:", "π/2", "2.0"]),
        ("s=0", ["s:", "above 0", "0.0"]),
        ("momentum=1", ["momentum", "below 1", "1.0"]),
        ("precision=fp8", ["precision", "fp32, bf16 or fp16", "'fp8'"]),
        ("output=", ["output", "a folder", "''"]),
        ("net_name=PocketNetX", ["net_name", "'PocketNetX'", "'PocketNet'"]),
        ("net_name=iresnet101", ["net_name", "'iresnet101'", "'iresnet100'"]),
        ("teacher_network=resnet", ["teacher_network", "'resnet'", "iresnet"]),
        ("genotype=casia", ["genotype", "'casia'", "softmax_casia"]),
        ("rec=", ["rec", "a folder", "''"]),
        ("rec=" + 300 * "long", ["rec", "no folder", "longlong"]),
        ("rec=data/nowhere", ["rec", "'data/nowhere'", "rec=FOLDER"]),
    ],
)
def test_a_wrong_override_names_field_value_and_mend(override, parts):
    message = refused(override)
    assert message.startswith("config") and [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("config.embeding_size = 64", ["embeding_size", "64", "'embedding_size'"]),
        ("config.batch_size = '64'", ["batch_size", "int", "'64'"]),
        ("config.val_targets = 'lfw'", ["val_targets", "list", "'lfw'"]),
        ("config.lr_func = 3", ["lr_func", "function", "3"]),
        ("config.lr_func = lambda: 1.0", ["lr_func", "epoch 0", "TypeError"]),
        ("config.lr_func = lambda epoch: 1 - epoch", ["lr_func", "epoch 2", "-1"]),
        ("config.genotypes = {'softmax_casia': 'Genotype()'}", ["genotypes['softmax_casia']", "needs normal"]),
        ("config.lr = = 1", ["config_own.py", "SyntaxError"]),
        ("config.lr = float('nan')", ["lr", "finite", "nan"]),
        ("config.val_targets = ['lfw', '']", ["val_targets", "names", "['lfw', '']"]),
        ("config.teacher_pth = None", ["teacher_pth", "str", "None"]),
        ("import numpy\nconfig.lr = numpy.eye(2)", ["lr", "float", "array"]),
        ("import numpy\nconfig.lrs = numpy.eye(2)", ["lrs", "array", "'lr'"]),
        ("config.genotypes = {'softmax_casia': 3}", ["genotypes['softmax_casia']", "text", "3"]),
        ("config.genotypes = {}", ["genotype", "'softmax_casia'"]),
        ("config.lr = 1 / 0", ["config_own.py", "ZeroDivisionError"]),
        ("open('/no/such')", ["config_own.py", "'/no/such'"]),
        ("raise RuntimeError('two\\nlines')", ["config_own.py", "RuntimeError: two lines"]),
        ("def again(): again()\nagain()", ["config_own.py", "RecursionError"]),
        ("from config.base import config", ["config_own.py", "its own config"]),
        ("import no_such_module", ["config_own.py", "no_such_module"]),
        ("config = 3", ["config_own.py", "EasyDict"]),
    ],
)
def test_a_wrong_file_names_what_is_wrong(tmp_path, text, parts):
    message = refused(path=written(tmp_path, text))
    assert [part for part in parts if part not in message] == []


def test_a_missing_file_is_named():
    message = refused(path="config/none.py")
    assert "'config/none.py'" in message and str(S128) in message
    assert "'longlong" in refused(path=300 * "long")


@pytest.mark.parametrize(("start", "encoding"), [("\ufeff", "utf-8"), ("# coding: latin-1\n", "latin-1")])
def test_a_file_is_read_in_the_encoding_it_names(tmp_path, start, encoding):
    path = tmp_path / "config_own.py"
    text = start + "from easydict import EasyDict\nconfig = EasyDict(output='réseau')\n"
    path.write_bytes(text.encode(encoding))
    assert load_config(path).output == "réseau"


def test_a_file_that_changes_the_defaults_changes_no_other_config(tmp_path, monkeypatch):
    monkeypatch.setitem(base, "lr", base.lr)  # puts back what the file changes
    refused(path=written(tmp_path, "from config.base import config\nconfig.lr = 99.0"))
    assert base.lr == 99.0 and load_config(S128).lr == 0.1


def test_a_file_with_its_own_schedule_refuses_another(tmp_path):
    path = written(tmp_path, "config.lr_func = lambda epoch: 1.0")
    assert load_config(path).lr_func(20) == 1.0
    for override in ("lr_steps=3", "warmup_epoch=3"):
        message = refused(override, path=path)
        assert override.split("=")[0] in message and "3" in message and "lr_func" in message


def test_the_data_folder_is_asked_for_by_those_who_need_it(tmp_path):
    config = load_config(written(tmp_path, "config.rec = 'data/nowhere'"))
    with pytest.raises(ConfigError, match="rec: no folder 'data/nowhere'"):
        require_data(config)
    require_data(load_config(S128, [f"rec={tmp_path}"]))


def test_loading_a_config_needs_no_torch():
    code = "import sys, config; config.load_config('config/config_demo.py'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_command_prints_every_field_and_fails_with_2(tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "config", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    shown = command("--config", "config/config_demo.py", f"rec={tmp_path}")
    assert shown.returncode == 0 and all(f"{name} = " in shown.stdout for name in base)
    between = command("seed=5", "--config", "config/config_demo.py", f"rec={tmp_path}")
    assert between.returncode == 0 and "seed = 5\n" in between.stdout
    failed = command("--config", "config/config_demo.py", "lr=x")
    assert (failed.returncode, failed.stderr) == (2, "error: config lr: should be float, is 'x'\n")
