"""State dicts in foreign files: those that are loaded, and the errors for the others."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from config import load_config
from tests.helpers.paths import ROOT
from utils.checkpoints.state_dicts import CheckpointError, check_state_dict, first_nonfinite, is_finite
from utils.checkpoints.weights import load_weights, read_weights
from utils.losses.arcface import ArcFace


def network(*overrides):
    return build_backbone(load_config(ROOT / "config" / "config_demo.py", ["channel=4", "n_layers=4", *overrides]))


def load(path, content, module=None):
    torch.save(content, path)
    module = module or network()
    load_weights(module, path)
    return module.state_dict()


def assert_equal(ours, theirs):
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items()) and ours.keys() == theirs.keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_what_wrappers_put_before_every_key_is_taken_off(tmp_path, prefix):
    weights = network().state_dict()
    assert_equal(load(tmp_path / "1backbone.pth", {prefix + key: value for key, value in weights.items()}), weights)


def test_a_prefix_that_not_every_key_has_stays(tmp_path):
    weights = {f"module.{key}": value for key, value in network().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"it has module\.stem\.0\.weight .* \(and \d+ more\) and lacks stem\.0"):
        load(tmp_path / "1backbone.pth", weights | {"other": torch.zeros(1)})


def test_the_forms_in_which_networks_are_saved(tmp_path):
    module = network()
    raw = module.state_dict()  # an OrderedDict with versions beside its values
    assert isinstance(raw, OrderedDict) and raw._metadata
    parameters = {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in raw.items()}
    for form in (
        raw,
        parameters,
        {key: value.double() if value.is_floating_point() else value.int() for key, value in raw.items()},
    ):
        assert_equal(load(tmp_path / "1backbone.pth", form), raw)
    halves = load(tmp_path / "1backbone.pth", {k: v.half() if v.is_floating_point() else v for k, v in raw.items()})
    assert_equal(halves, {k: v.half().float() if v.is_floating_point() else v for k, v in raw.items()})


@pytest.mark.parametrize("name", ["state_dict", "model", "net"])
def test_the_only_state_dict_inside_is_used_and_logged(tmp_path, log_capture, name):
    weights = network().state_dict()
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1).state_dict()
    content = {name: {f"module.{k}": v for k, v in weights.items()}, "epoch": 7, "optimizer": optimizer, "scores": {}}
    assert_equal(load(tmp_path / "1backbone.pth", content | {"loss": torch.zeros(())}), weights)
    assert f"1backbone.pth: uses the state dict under its key {name}" in log_capture.text


def test_none_inside_and_no_state_dict_at_all(tmp_path):
    path = tmp_path / "1backbone.pth"
    for content, message in (
        ({"epoch": 7, "model": {}}, "should hold a state dict of tensors by name, but has epoch: int"),
        ([torch.zeros(2)], "should hold a state dict of tensors, not a list"),
        ({1: torch.zeros(2)}, "should hold a state dict of tensors .* has 1: Tensor"),
        ({"a\x1b[2J": 1}, r"tensors .* has 'a\\x1b\[2J': int"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_weights(path)


@pytest.mark.parametrize(
    ("ours", "theirs", "fields"),
    [
        (["channel=4"], ["channel=8"], "net_name, channel, n_layers, genotype, embedding_size"),
        (["embedding_size=64"], ["embedding_size=32"], "embedding_size"),
        (["net_name=iresnet18", "embedding_size=64"], ["net_name=iresnet18", "embedding_size=32"], "embedding_size"),
        (["n_layers=4"], ["n_layers=5"], "net_name, channel, n_layers, genotype"),
        ([], ["net_name=iresnet18"], "net_name, channel, n_layers, genotype"),
    ],
)
def test_another_network_names_the_fields_that_decide_on_it(tmp_path, ours, theirs, fields):
    with pytest.raises(CheckpointError, match=rf"1backbone\.pth: .*; check {fields}$"):
        load(tmp_path / "1backbone.pth", network(*theirs).state_dict(), network(*ours))


@pytest.mark.parametrize(
    ("theirs", "fields"),
    [
        ((16, 9), "num_classes and rec"),
        ((8, 5), "embedding_size"),
        ((8, 9), "num_classes and rec, embedding_size"),
    ],
)
def test_a_header_names_its_own_fields(tmp_path, theirs, fields):
    with pytest.raises(
        CheckpointError, match=rf"kernel has shape \(.*\), but the config needs \(16, 5\); check {fields}$"
    ):
        load(tmp_path / "1header.pth", ArcFace(*theirs).state_dict(), ArcFace(16, 5))


def test_shapes_of_many_dimensions_and_long_names_are_cut(tmp_path):
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "1header.pth", {"x" * 5000: torch.zeros([1] * 60)}, ArcFace(16, 5))
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["stem.0.weight", "tail.7.running_var"])
def test_one_number_that_is_not_finite_names_file_and_tensor(tmp_path, key, value):
    weights = network().state_dict()
    weights[key].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=rf"1backbone\.pth: {key} is not finite: its training failed"):
        load(tmp_path / "1backbone.pth", weights)


def test_what_is_finite_only_in_a_larger_type_is_not(tmp_path):
    with pytest.raises(CheckpointError, match="kernel is not finite"):
        load(tmp_path / "1header.pth", {"kernel": torch.full((16, 5), 1e39, dtype=torch.float64)}, ArcFace(16, 5))
    most = torch.finfo(torch.float32).max
    assert (
        load(tmp_path / "1header.pth", {"kernel": torch.full((16, 5), -most)}, ArcFace(16, 5))["kernel"][0, 0] == -most
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_where_the_network_has_others_are_refused(tmp_path, dtype):
    with pytest.raises(CheckpointError, match=rf"kernel is {dtype} in the file, but torch\.float32 in the network"):
        load(tmp_path / "1header.pth", {"kernel": torch.ones(16, 5, dtype=dtype)}, ArcFace(16, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_other_numbers_where_the_network_counts_are_refused(tmp_path, dtype):
    weights = nn.BatchNorm1d(3).state_dict()
    with pytest.raises(CheckpointError, match=rf"num_batches_tracked is {dtype} in the file, but torch\.int64"):
        load(
            tmp_path / "1header.pth", weights | {"num_batches_tracked": torch.ones((), dtype=dtype)}, nn.BatchNorm1d(3)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_value_is_checked_to_be_finite(dtype):
    values = torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4)
    assert is_finite(values) and is_finite(values.T) and is_finite(values[:0]) and is_finite(torch.arange(3))
    for place in range(12):
        for value in (torch.nan, torch.inf, -torch.inf):
            wrong = values.clone()
            wrong.view(-1)[place] = value
            assert not is_finite(wrong) and not is_finite(wrong.T)
    assert is_finite(torch.full((2,), torch.finfo(dtype).max, dtype=dtype))


def test_the_first_that_is_not_finite_is_named_by_its_keys():
    nan = torch.full((2,), torch.nan)
    assert first_nonfinite({"a": [1, {"b": nan}], "c": nan}) == "a/1/b"
    assert first_nonfinite({"a": torch.ones(2), "n": float("inf")}) == "n"
    assert first_nonfinite({"a": [torch.ones(2), None, "nan", 3, 0.5], "b": ()}) is None


def test_shapes_and_types_are_checked_without_memory():
    with torch.device("meta"):
        expected = ArcFace(16, 10**9).state_dict()
    with pytest.raises(
        CheckpointError, match=r"\(16, 5\), but the config needs \(16, 1000000000\); check num_classes and rec"
    ):
        check_state_dict(expected, ArcFace(16, 5).state_dict(), "file")
