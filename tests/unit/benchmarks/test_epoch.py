"""benchmarks/epoch.py: the time of each phase counts once, where it was spent."""

import itertools

import torch

from benchmarks import epoch
from benchmarks.epoch import Stopwatch, format_table, run_timed
from tests.helpers.training import small_config


def test_a_phase_within_another_stops_its_clock(monkeypatch):
    ticks = itertools.count()  # each look at the clock is one second later
    monkeypatch.setattr(epoch.time, "perf_counter", lambda: float(next(ticks)))
    stopwatch = Stopwatch(torch.device("cpu"))
    inner = stopwatch.time_call(lambda: None, "forward")
    with stopwatch.phase("optimizer"):
        inner()
        inner()
    assert list(stopwatch.time_iterations(lambda: iter([1, 2]), "data")()) == [1, 2]
    assert stopwatch.seconds == {"optimizer": 3, "forward": 2, "data": 3}


def test_the_table_has_shares_of_the_time_after_the_start():
    table = format_table({"forward": 3.0, "verification": 1.0, "verification passes": 4.0, "other": 2.0}, 30.0)
    assert "forward            3.00 s   30.0%" in table and "verification       5.00 s   50.0%" in table
    assert "start-up          20.00 s" in table
    assert "verification takes 1.25 times as long as its forward passes" in table


def test_every_phase_of_a_run_is_found(tmp_path, tiny_data):
    stopwatch = Stopwatch(torch.device("cpu"))
    config = small_config(tmp_path, tiny_data, "num_epoch=1", "eval_step=1", "val_targets=tiny")
    run_timed(config, stopwatch)
    assert stopwatch.seconds.keys() == {*epoch.PHASES, "verification passes"}
    assert min(stopwatch.seconds.values()) > 0
