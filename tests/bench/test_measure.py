"""Alternating runs with a fake clock, and peak memory compared with sums computed by hand."""

import time

import pytest
import torch
from torch import nn

from botvision.bench.measure import alternate, inference, measure, peak_memory, training


class Clock:
    """A fake clock that advances only when a subject runs."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.log = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def subject(self, name, *durations):
        """Return a function whose runs last these numbers of seconds. The last one repeats."""
        remaining = list(durations)

        def run():
            self.log.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_subjects_alternate_after_a_warm_up_that_is_not_timed(clock):
    subjects = {"a": clock.subject("a", 50.0, 2.0), "b": clock.subject("b", 60.0, 3.0)}
    times = alternate(subjects, seconds=18.0, device="cpu")
    assert times == {"a": [2.0] * 4, "b": [3.0] * 4}
    assert clock.log == ["a", "b"] * 5


def test_every_subject_runs_min_runs_times_even_when_the_time_is_spent(clock):
    times = alternate({"a": clock.subject("a", 100.0)}, seconds=1.0, device="cpu", min_runs=4)
    assert times == {"a": [100.0] * 4}


def test_nothing_to_time_takes_no_time():
    assert alternate({}, seconds=1e9, device="cpu") == {}


def test_median_and_interquartile_range(clock):
    # Three runs before the timed ones: the first, the one for memory, the warm-up.
    run = clock.subject("a", 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 50.0)
    got = measure({"a": run}, seconds=59.0, device="cpu")["a"]
    assert (got.runs, got.median_ms, got.spread_ms) == (5, 3000.0, 2000.0)
    assert got.failure is None


def test_one_that_fails_does_not_stop_the_others():
    def fails():
        raise ValueError("no such map\nand more")

    seen = {}
    got = measure(
        {"bad": fails, "good": lambda: 7}, seconds=0.0, device="cpu", inspect=seen.__setitem__
    )
    assert list(got) == ["bad", "good"]
    assert (got["bad"].failure, got["bad"].median_ms) == ("ValueError: no such map", None)
    assert (got["good"].failure, got["good"].runs) == (None, 3)
    assert seen == {"good": 7}


def megabytes(number):
    return torch.empty(number * 10**6, dtype=torch.uint8)


def test_peak_is_what_is_held_at_once():
    def run():
        first, second = megabytes(10), megabytes(20)
        del first, second
        return megabytes(5)

    assert peak_memory(run, "cpu") == 30 * 10**6


def test_a_later_peak_counts_and_so_does_the_result():
    def run():
        kept = megabytes(10)
        for _ in range(3):
            megabytes(20)
        return kept, megabytes(25)

    assert peak_memory(run, "cpu") == 35 * 10**6


def test_in_place_operators_allocate_nothing():
    x = torch.ones(1000, 1000)
    assert peak_memory(x.relu_, "cpu") == 0
    assert peak_memory(lambda: None, "cpu") == 0


def test_memory_inside_operators_counts():
    x = torch.ones(1000, 1000)
    assert peak_memory(lambda: x @ x, "cpu") == 4_000_000
    # The product and its cosine.
    assert peak_memory(lambda: (x @ x).cos(), "cpu") == 8_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_peak_on_cuda():
    x = torch.ones(1024, 1024, device="cuda")
    peak_memory(lambda: x @ x, "cuda")  # the workspace of the library
    assert peak_memory(lambda: x + 1, "cuda") == 4 * 2**20
    assert peak_memory(lambda: (x + 1).cos(), "cuda") == 8 * 2**20


def test_training_gives_the_gradients_and_leaves_none_behind():
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3, requires_grad=True)
    upstream = torch.randn(5, 2)
    run = training(layer, x, "32", upstream)
    run()
    grad_x, grad_weight, grad_bias = run()
    torch.testing.assert_close(grad_x, upstream @ layer.weight)
    torch.testing.assert_close(grad_weight, upstream.T @ x)
    torch.testing.assert_close(grad_bias, upstream.sum(0))
    assert x.grad is None and layer.weight.grad is None


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16), ("16", torch.float16)]
)
def test_precision(precision, dtype):
    out = inference(nn.Linear(3, 2), torch.randn(5, 3), precision)()
    assert out.dtype == dtype and not out.requires_grad
