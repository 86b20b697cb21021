"""Which threshold a verdict uses."""

import json

import pytest

from deploy.networks.thresholds import choose_threshold, read_evaluation
from utils.errors import UserError
from utils.filesystem import sha256


def entry(different, warning="", **points):
    values = {"pairs": 2 * different, "different": different, "1e-04": "needs at least 10000 different pairs"}
    values |= {"1e-02": {"cosine": 0.2}, "1e-03": {"cosine": 0.3}} | points
    return values | ({"warning": warning} if warning else {})


def test_own_photos_come_first_then_the_set_with_most_pairs():
    sets = {"lfw": entry(3000), "big": entry(9000), "folder:mine": entry(50), "pairs:raw": entry(99, "not aligned")}
    assert choose_threshold(sets, 1e-3, "net").eval_set == "folder:mine"
    del sets["folder:mine"]
    assert choose_threshold(sets, 1e-3, "net").eval_set == "big"
    assert choose_threshold(sets, 1e-3, "net", "lfw").eval_set == "lfw"
    chosen = choose_threshold({"pairs:raw": sets["pairs:raw"]}, 1e-2, "net")
    assert str(chosen) == "0.200 (FAR 0.01 on pairs:raw; not aligned)"


def test_a_set_without_the_rate_gives_way_to_one_with_it():
    sets = {"folder:few": entry(50, **{"1e-03": "needs at least 1000 different pairs"}), "lfw": entry(3000)}
    assert choose_threshold(sets, 1e-3, "net").eval_set == "lfw"
    assert choose_threshold(sets, 1e-2, "net").eval_set == "folder:few"


@pytest.mark.parametrize(
    ("sets", "arguments", "error"),
    [
        ({}, (1e-3,), "net: there are no thresholds for this network; evaluate it first"),
        ({"lfw": entry(3)}, (1e-4,), "net: no threshold at FAR 0.0001; there are 0.01, 0.001$"),
        ({"lfw": entry(3)}, (1e-3, "ijbc"), "net: no thresholds of the set 'ijbc'; there are lfw$"),
        ({"lfw": {"x": {"cosine": 1}, "1e-03": {"far": 1}}}, (1e-3,), "evaluate it on more pairs"),
        *(
            ({"lfw": {"1e-03": {"cosine": wrong}}}, (1e-3,), "evaluate it on more pairs")
            for wrong in (float("nan"), 10**400, True, "0.3", 2, None)
        ),
    ],
)
def test_what_is_missing_is_said(sets, arguments, error):
    with pytest.raises(UserError, match=error):
        choose_threshold(sets, arguments[0], "net", *arguments[1:])


def test_only_entries_of_the_same_weights_count(tmp_path):
    weights = tmp_path / "5backbone.pth"
    weights.write_bytes(b"weights")
    digest = sha256(weights)
    content = {
        "5": {"lfw": entry(3000) | {"sha256": "other"}},
        "7 (run-0123ab)": {"cfp": entry(8) | {"sha256": digest}},
    }
    (tmp_path / "thresholds.json").write_text(json.dumps(content))
    assert list(read_evaluation(weights, digest, "thresholds.json")) == ["cfp"]
    results = tmp_path / "elsewhere"
    results.mkdir()
    (results / "thresholds.json").write_text(json.dumps({"5": {"own": entry(5) | {"sha256": digest}}}))
    assert set(read_evaluation(weights, digest, "thresholds.json", str(results))) == {"cfp", "own"}
