"""Time and peak memory of functions that are to be compared.

Other programs disturb a machine for seconds at a time, so the functions run in turn and medians are
quoted.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from botvision.config import Dtype
from botvision.device import autocast

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of one function; without figures when it failed.

    Args:
        runs: that were timed.
        median_ms: of a run.
        spread_ms: interquartile range of the runs.
        peak_mib: most that torch had allocated at once, above what it had before the run; the
            result is included, scratch space of the libraries under torch is not.
        failure: why there are no figures.
    """

    runs: int = 0
    median_ms: float | None = None
    spread_ms: float | None = None
    peak_mib: float | None = None
    failure: str | None = None


def measure(
    subjects: Mapping[str, Callable[[], Result]],
    *,
    seconds: float,
    device: str,
    inspect: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Measurement]:
    """Measure every subject; float32 is float32, without TF32.

    Args:
        subjects: name to function. One that raises gets a measurement that says so.
        seconds: to spend on timing them, together.
        device: where they run.
        inspect: sees the name and the result of each one's first run.
    """
    peaks: dict[str, int] = {}
    measured: dict[str, Measurement] = {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        for name, run in subjects.items():
            try:
                inspect(name, run())
                peaks[name] = peak_memory(run, device)
            except Exception as error:  # compilers and kernels raise types of their own
                measured[name] = Measurement(failure=_reason(error))
        times = alternate({name: subjects[name] for name in peaks}, seconds=seconds, device=device)
    for name, runs in times.items():
        first, median, third = statistics.quantiles(runs, n=4, method="inclusive")
        measured[name] = Measurement(
            runs=len(runs),
            median_ms=median * 1e3,
            spread_ms=(third - first) * 1e3,
            peak_mib=peaks[name] / 2**20,
        )
    return {name: measured[name] for name in subjects}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def alternate(
    subjects: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    device: str,
    min_runs: int = 3,
) -> dict[str, list[float]]:
    """Time the subjects in turn, until the time is spent and each has run ``min_runs`` times.

    Each runs once before, not timed.

    Returns:
        Seconds of every run.
    """
    if not subjects:
        return {}
    for run in subjects.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    start = time.perf_counter()
    rounds = 0
    while rounds < min_runs or time.perf_counter() - start < seconds:
        for name, run in subjects.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - begin)
        rounds += 1
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Most bytes that torch had allocated at once during ``run()``, above those before it.

    ``run`` should free nothing that was there before: on a CPU, the profiler does not see that.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # profiler.events() keeps only what was allocated and freed outside of operators.
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(0, max(itertools.accumulate(event.nbytes() for event in events), default=0))


def inference(module: nn.Module, x: Tensor, precision: Dtype) -> Callable[[], Tensor]:
    """A run of ``module(x)`` without gradients, under autocast unless ``"32"``."""

    def run() -> Tensor:
        with torch.no_grad(), autocast(x.device.type, precision):
            out: Tensor = module(x)
            return out

    return run


def training(
    module: nn.Module, x: Tensor, precision: Dtype, upstream: Tensor | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """A run of ``module(x)`` and its backward pass, under autocast unless ``"32"``.

    Args:
        module: one tensor in, one out.
        x: its input.
        precision: of the products.
        upstream: gradient of the result; ones by default.

    Returns:
        Gradients of ``x``, if it requires one, and of the parameters in their order.
    """
    leaves = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]

    def run() -> tuple[Tensor, ...]:
        with autocast(x.device.type, precision):
            out = module(x)
        gradient = torch.ones_like(out) if upstream is None else upstream.to(out.dtype)
        # Unlike backward(), leaves nothing behind, so that every run is like the first.
        return torch.autograd.grad(out, leaves, gradient)

    return run
