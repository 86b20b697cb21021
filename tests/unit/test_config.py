"""Configs: what loads, what overrides do, and that every mistake is one line that names it."""

import json
import os
import subprocess
import sys

import pytest

from backbones.names import resolve_network_name
from config import (
    CommandParser,
    ConfigError,
    add_config_arguments,
    collect_overrides,
    load_config,
    output_override,
    require_data,
    save_config,
    shipped_configs,
    warn_unused_fields,
)
from config.base import Config
from config.fields import DEFAULTS
from config.usage import unused_fields
from tests.helpers.paths import GOLDEN, ROOT
from tests.helpers.published_configs import PUBLISHED, PUBLISHED_CONFIG, published_config
from utils.errors import UserError

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
    assert [config.lr_factor(epoch) for epoch in range(26)] == SCHEDULE["PocketNetS128"]["lr_factor"]


def test_the_promised_configs_are_shipped_and_load():
    names = {path.stem.removeprefix("config_") for path in shipped_configs()}
    assert {"PocketNetS128", "PocketNetS256", "PocketNetM128", "PocketNetM256", "demo"} <= names
    teachers = [load_config(ROOT / "config" / f"config_iresnet100{suffix}.py") for suffix in ("", "_256")]
    assert [teacher.embedding_size for teacher in teachers] == [128, 256]
    for path in shipped_configs():
        assert load_config(path).to_dict().keys() == DEFAULTS.keys()


def test_a_published_config_loads_unchanged_from_config_py(tmp_path, monkeypatch):
    monkeypatch.setattr("config.load.CONFIG_FOLDER", tmp_path)
    (tmp_path / "config.py").write_text(PUBLISHED_CONFIG)
    config = load_config()
    assert (config.embedding_size, config.channel, config.n_layers, config.w) == (256, 32, 9, 100.0)
    assert config.val_targets == ["lfw", "cfp_fp"] and config.teacher_network == "resnet100"
    assert [config.lr_factor(epoch) for epoch in range(26)] == SCHEDULE["PocketNetM256"]["lr_factor"]
    with pytest.raises(ConfigError, match="this config file defines lr_func"):
        load_config(overrides=["warmup_epoch=2"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_config_loads_unchanged(tmp_path, name):
    """All values that the published file sets are loaded, for training and for distillation."""
    path = tmp_path / name
    path.write_text(published_config(PUBLISHED[name]))
    for distillation in (False, True):
        config = load_config(path, distillation=distillation)
        fields = {**PUBLISHED[name]}
        factors, unused = fields.pop("lr_func"), [field for field in ("scale", "network") if fields.pop(field, None)]
        assert [config.lr_factor(epoch) for epoch in range(26)] == factors
        assert sorted(config.without_effect) == sorted(unused)
        assert {field: getattr(config, field) for field in fields} == fields


def test_published_spellings_name_networks():
    assert {resolve_network_name(name) for name in ("resnet", "iresnet100", "ResNet-100", "iresnet")} == {"iresnet100"}
    assert resolve_network_name("DartFaceNet") == resolve_network_name("PocketNet") == "PocketNet"
    names = ("PocketNetS-128", "pocketnetM256", "PocketNet-128", "resnet50")
    assert [resolve_network_name(name) for name in names] == ["PocketNetS", "PocketNetM", "PocketNet", "iresnet50"]
    for name in ("mobilefacenet", "m", "", "resnet101", "PocketNetXS"):
        with pytest.raises(UserError, match="known are PocketNet, PocketNetS, PocketNetM, iresnet18"):
            resolve_network_name(name)


def test_what_only_distillation_needs_never_stops_training(tmp_path):
    path = written(tmp_path, "config.teacher_network = 'unheard of'\nconfig.teacher_pth = None\nconfig.w = 'much'")
    config = load_config(path, ["teacher_precision=fp99", "teacher_global_step=late", "teacher_genotype=none"])
    assert config.teacher_network == "unheard of"
    messages = []
    for field, fix in (("w", "w = 1"), ("teacher_pth", "teacher_pth = 'x'"), ("teacher_network", "")):
        with pytest.raises(ConfigError, match=f"config {field}: ") as error:
            load_config(path, distillation=True)
        messages.append(str(error.value))
        path.write_text(path.read_text() + f"\nconfig.{fix}" * bool(fix))
    assert "known are PocketNet" in messages[-1]


def test_names_near_no_field_are_a_warning_in_a_file(tmp_path, log_capture):
    path = written(tmp_path, "config.scale = 1.0\nconfig.fp16 = True\nconfig.frequent = 10\nconfig.multi_step = True")
    config = load_config(path, ["cost_weight=1", "n_layers=9", "net_name=iresnet18", "seed=0"])
    assert config.to_dict().keys() == DEFAULTS.keys()
    warn_unused_fields(config, "train")
    assert [(record.levelname, record.getMessage()) for record in log_capture.records] == [
        ("INFO", "Config: scale: published config fields without effect"),
        ("WARNING", "Config: fp16, frequent: unknown fields, ignored (config/base.py lists the fields)"),
        (
            "WARNING",
            "Config: n_layers, cost_weight, multi_step: set, but not used by this command; ./train_kd.sh trains with a "
            "teacher",
        ),
    ]


@pytest.mark.parametrize(
    ("command", "overrides", "unused"),
    [
        ("train", ["student_global_step=3", "student_header=1"], ["student_global_step", "student_header"]),
        ("train", ["student_global_step=3", "student_header=1", "student_pth=x"], []),
        ("train_kd", ["teacher_channel=3", "n_nodes=2"], ["n_nodes"]),
        ("search", ["w=3", "m=0.3", "n_nodes=2", "eval_step=9", "freeze=stem"], ["m", "eval_step", "w", "freeze"]),
        ("eval", ["lr=3", "batch_size=9", "eval_batch=9", "channel=8"], ["batch_size", "lr"]),
        ("flops", ["lr=3", "channel=8", "val_targets=lfw"], ["val_targets", "lr"]),
        ("visualize", ["genotype=softmax_casia", "channel=8"], ["channel"]),
        ("derive", ["output=x", "channel=8", "rec=tests"], ["rec", "channel"]),
        ("derive --genotype", ["output=x"], ["output"]),
        ("train", ["w=100", "teacher_pth="], []),  # equal to the defaults: no warning
    ],
)
def test_settings_that_a_command_does_not_use(tmp_path, command, overrides, unused):
    config = load_config(written(tmp_path, "config.seed = 8"), overrides)
    assert sorted(unused_fields(config, command)) == sorted(unused)


def test_relative_paths_count_from_the_project_in_a_file_and_from_the_working_folder_when_typed(tmp_path, monkeypatch):
    path = written(tmp_path, "config.output = 'output/x'\nconfig.teacher_pth = '~/teacher'\nconfig.student_pth = '/s'")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(ROOT)
    config = load_config(path, ["log_dir=curves", "test_output=~/t"])
    assert (config.output, config.log_dir, config.test_output) == ("output/x", "curves", "/home/somebody/t")
    assert (config.teacher_pth, config.student_pth, config.rec) == ("/home/somebody/teacher", "/s", "data/faces_emore")
    monkeypatch.chdir(tmp_path)
    config = load_config("config_own.py", ["log_dir=curves", "teacher_cache="])
    assert (config.output, config.log_dir) == (str(ROOT / "output/x"), "curves")
    assert (config.rec, config.test_output, config.teacher_cache) == (str(ROOT / "data/faces_emore"), "", "")


def test_a_config_json_sets_no_output_folders_and_no_start(tmp_path):
    kept = {"output": "/elsewhere", "test_output": "/elsewhere", "resume": "0", "global_step": 7}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    config = load_config(tmp_path)
    assert (config.output, config.test_output, config.resume, config.global_step) == (str(tmp_path), "", "auto", 0)


def test_a_full_disk_costs_the_kept_config_and_no_run(tmp_path, log_capture):
    config = load_config(S128, [f"output={tmp_path}"])
    (tmp_path / "config.json").mkdir()  # in place of a full disk
    save_config(config)
    assert "config.json could not be written (Is a directory)" in log_capture.text


def test_the_folder_that_is_typed():
    assert output_override(["lr=1", "output=a=b"]) == "a=b" and output_override(["config.output=c"]) == "c"
    assert output_override(["test_output=a"]) is None


def test_a_name_that_means_another_size_is_a_warning(log_capture):
    for overrides, warned in ((["net_name=PocketNetM"], True), (["channel=32", "n_layers=9"], True), ([], False)):
        log_capture.clear()
        warn_unused_fields(load_config(S128, overrides), "train")
        assert ("stands for channel=" in log_capture.text) == warned


def test_a_run_keeps_its_config_as_data(tmp_path, monkeypatch):
    own = written(tmp_path, "config.lr_func = lambda epoch: 1 / (1 + epoch)\nconfig.num_epoch = 3")
    monkeypatch.chdir(ROOT)
    for path, overrides in ((S128, ["channel=8", "lr_steps=2"]), (own, ["rec=tests"])):
        config = load_config(path, [*overrides, f"output={tmp_path}", "log_dir=elsewhere"])
        save_config(config)
        for saved in (load_config(tmp_path), load_config(tmp_path / "config.json"), load_config(saved_in=tmp_path)):
            fields = [name for name in DEFAULTS if name != "lr_func"]
            assert [getattr(saved, name) for name in fields] == [getattr(config, name) for name in fields]
            assert [saved.lr_factor(epoch) for epoch in range(3)] == [config.lr_factor(epoch) for epoch in range(3)]
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["rec"] == "tests" and not {"resume", "global_step"} & set(kept)
    with pytest.raises(ConfigError, match="defines lr_func"):
        load_config(tmp_path, ["lr_steps=2"])
    monkeypatch.chdir(tmp_path)
    assert (load_config(".").rec, load_config(".").output) == (str(ROOT / "tests"), ".")
    (tmp_path / "moved").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "moved" / "config.json")
    assert load_config("moved").output == "moved" and load_config("moved", ["output=new"]).output == "new"


def test_a_config_that_is_a_pipe_is_one_line(tmp_path):
    """A config.json that is a pipe is not ignored: the config of another network would be used."""
    for name, path in (("config.py", tmp_path / "config.py"), ("config.json", tmp_path)):
        os.mkfifo(tmp_path / name)
        assert f"{name}: is not a regular file (a pipe)" in refused(path=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "should be a JSON object"),
        ('{"lr": "fast"}', "config lr: should be float, is 'fast'"),
        ('{"lr_func": 3}', "lr_func should be a list of numbers"),
        ('{"lr_func": [-1]}', "config lr_func: should return a factor for epoch 0, returns -1"),
        ('{"embeding_size": 3}', "did you mean 'embedding_size'"),
        ('{"1": "1"}', None),
        ('{"items": 3, "pop": 4, "update": 5}', None),
    ],
)
def test_a_damaged_config_json_is_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    if message is None:
        config = load_config(tmp_path)
        assert config.without_effect == list(json.loads(text)) and config.to_dict().keys() == DEFAULTS.keys()
        config.output = str(tmp_path)
        save_config(config)
    else:
        assert message in refused(path=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "--epochs: no such option; set the config field: num_epoch=3"),
        (["lr=1", "--batch-size=64"], "--batch-size: no such option; set the config field: batch_size=64"),
        (["--learning_rate", "--config"], "--config: expected one argument; --help lists the options"),
        (["--learning_rate"], "--learning_rate: no such option; set the config field: lr=VALUE"),
        (["--frobnicate"], "--frobnicate: no such option; --help lists the options"),
        (["--resume", "1"], "--resume: no such option; this command does not resume a run"),
    ],
)
def test_a_wrong_option_names_the_field_that_is_meant(arguments, message):
    parser = CommandParser("A command.")
    add_config_arguments(parser)
    with pytest.raises(ConfigError) as error:
        parser.parse(arguments)
    assert message in str(error.value)


def test_only_commands_that_resume_take_resume():
    parser = CommandParser("A command.")
    add_config_arguments(parser, resume=True)
    assert collect_overrides(parser.parse(["lr=1", "--resume", "0"])) == ["lr=1", "resume=0"]
    with pytest.raises(ConfigError, match="--resume: invalid choice: '2'"):
        parser.parse(["--resume", "2"])


def test_every_published_field_keeps_its_value(tmp_path):
    (tmp_path / "published.py").write_text(PUBLISHED_CONFIG)
    namespace = {}
    exec(PUBLISHED_CONFIG, namespace)
    config, given = load_config(tmp_path / "published.py"), namespace["config"]
    assert len(given) == 29 and set(given) <= DEFAULTS.keys()
    assert [name for name in given if name != "lr_func" and getattr(config, name) != given[name]] == []


def test_a_file_copied_again_within_the_second_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("config.load.CONFIG_FOLDER", tmp_path)
    for size in (128, 256):
        text = f"from easydict import EasyDict\nconfig = EasyDict(embedding_size={size})\n"
        (tmp_path / "config.py").write_text(text)
        os.utime(tmp_path / "config.py", (1, 1))
        assert load_config().embedding_size == size


def test_no_config_lists_those_there_are_and_shows_the_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("config.load.CONFIG_FOLDER", tmp_path)
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
    got = getattr(load_config(S128, [override]), name)
    assert got == value and type(got) is type(value)


def test_lr_steps_and_warm_up_make_the_schedule():
    config = load_config(S128, ["warmup_epoch=2", "lr_steps=3"])
    assert [config.lr_factor(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.16, 1, 0.1, 0.1])


def test_defaults_are_not_shared_between_configs():
    first = load_config(S128)
    first.lr_steps.append(99)
    first.genotypes["softmax_casia"] = "changed"
    assert 99 not in load_config(S128).lr_steps and 99 not in DEFAULTS["lr_steps"]
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
        ("=1", ["no such field", "'1'", "config/base.py lists the fields"]),
        ("fp16=1", ["fp16", "no such field", "config/base.py lists the fields"]),
        ("optimizer=adam", ["optimizer", "sgd or adamw", "'adam'"]),
        ("fp16=True", ["fp16", "no such field", "config/base.py lists the fields"]),
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
        ("precision=fp8", ["precision", "fp32, tf32, bf16 or fp16", "'fp8'"]),
        ("output=", ["output", "a folder", "''"]),
        ("net_name=PocketNetX", ["net_name", "'PocketNetX'", "known are PocketNet, PocketNetS"]),
        ("net_name=iresnet101", ["net_name", "'iresnet101'", "iresnet100"]),
        ("genotypes={1:2}", ["genotypes", "dict of names and texts", "{1: 2}"]),
        ("genotypes={'a':{1:2}}", ["genotypes", "dict of names and texts"]),
        ("genotypes={'a':[{1:2}]}", ["genotypes", "dict of names and texts"]),
        ("max_steps=1000000000000000000000", ["max_steps", "at most 1,000,000,000,000,000"]),
        ("max_steps=1e21", ["max_steps", "int", "1e+21"]),
        ("timeout=10000000000", ["timeout", "at most 1,000,000", "10000000000"]),
        ("num_epoch=100000000", ["num_epoch", "at most 100,000", "100000000"]),
        ("resume=False", ["resume", "auto, 0 or 1", "'False'"]),
        ("output=a\0b", ["output", "a path", "'a\\x00b'"]),
        ("dataset", ["'dataset'", "field=value"]),
        ("epochs=3", ["epochs", "'num_epoch'"]),
        ("num_workers=3", ["num_workers", "'workers'"]),
        ("precision=" + 300 * "long", ["precision", "fp32, tf32, bf16 or fp16", "longlong", "…"]),
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
        ("config.student_pth = None", ["student_pth", "str", "None"]),
        ("config.resume = False", ["resume", "auto, 0 or 1", "False"]),
        ("config.compile = 'yes'", ["compile", "True or False", "'yes'"]),
        ("config.epochs = 3", ["epochs", "3", "'num_epoch'"]),
        ("import numpy\nconfig.lr = numpy.eye(2)", ["lr", "float", "array"]),
        ("import numpy\nconfig.lrs = numpy.eye(2)", ["lrs", "array", "'lr'"]),
        ("config.genotypes = {'softmax_casia': 3}", ["genotypes['softmax_casia']", "text", "3"]),
        ("config.genotypes = {}", ["genotype", "'softmax_casia'"]),
        ("config.lr = 1 / 0", ["config_own.py", "ZeroDivisionError"]),
        ("open('/no/such')", ["config_own.py", "'/no/such'"]),
        ("raise RuntimeError('two\\nlines')", ["config_own.py", "RuntimeError: two lines"]),
        ("def again(): again()\nagain()", ["config_own.py", "RecursionError"]),
        ("from config.base import config", ["config_own.py", "cannot import name"]),
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
    monkeypatch.setattr(Config, "lr", Config.lr)  # puts back what the file changes
    load_config(written(tmp_path, "from config.base import Config\nConfig.lr = 99.0"))
    assert Config.lr == 99.0 and load_config(S128).lr == 0.1


def test_a_file_with_its_own_schedule_refuses_another(tmp_path):
    path = written(tmp_path, "config.lr_func = lambda epoch: 1.0")
    assert load_config(path).lr_func(20) == 1.0
    for override in ("lr_steps=3", "warmup_epoch=3"):
        message = refused(override, path=path)
        assert override.split("=")[0] in message and "3" in message and "lr_func" in message


def test_only_commands_that_read_data_require_its_folder(tmp_path):
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
    assert shown.returncode == 0 and all(f"{name} = " in shown.stdout for name in DEFAULTS)
    between = command("seed=5", "--config", "config/config_demo.py", f"rec={tmp_path}")
    assert between.returncode == 0 and "seed = 5\n" in between.stdout
    unused = ["--config", "config/config_demo.py", f"rec={tmp_path}", "n_nodes=2", "w=3"]
    for options, log_capture in (
        ([], "Config: n_nodes, w: set, but not used by ./train.sh; ./train_kd.sh trains with a teacher"),
        (["--kd", "teacher_pth=x"], "Config: n_nodes: set, but not used by ./train_kd.sh"),
    ):
        shown = command(*unused, *options)
        assert (shown.returncode, shown.stderr) == (0, "") and shown.stdout.splitlines()[-1] == log_capture
    failed = command("--config", "config/config_demo.py", "lr=x")
    assert (failed.returncode, failed.stderr) == (2, "error: config lr: should be float, is 'x'\n")


def test_a_schedule_that_reads_the_config_sees_overrides_and_defaults(tmp_path):
    path = written(
        tmp_path, "config.num_epoch = 4\nconfig.lr_func = lambda epoch: 1 - epoch / config.num_epoch * config.m"
    )
    config = load_config(path, ["num_epoch=8"])
    assert [config.lr_factor(epoch) for epoch in (0, 4)] == [1, 1 - 4 / 8 * 0.5]


def test_fields_of_earlier_versions_have_their_new_names(tmp_path):
    config = load_config(written(tmp_path, "config.head = 'whole'\nconfig.search_data = 'faces'"))
    assert (config.header, config.data_source, config.without_effect) == ("replicated", "recordio", [])
    assert load_config(S128, ["head=sharded"]).header == "sharded"
