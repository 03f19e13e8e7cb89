"""Time and peak memory of functions that are compared.

Other programs slow down a machine for seconds at a time. Therefore the functions run in turn, and
medians are reported.
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
    """Time and memory of one function, or why it failed.

    Args:
        runs: Number of timed runs.
        median_ms: Median time of a run.
        spread_ms: Interquartile range of the times.
        peak_mib: Peak memory that torch allocates during a run, minus the memory before the run.
            It includes the result, but not the workspace of libraries that torch calls.
        failure: Type and first line of the exception of a function that failed.
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
    """Measure time and peak memory of every subject, without TF32.

    Args:
        subjects: Functions by name. An exception in one function does not stop the others.
        seconds: Timing budget in seconds, for all subjects together.
        device: Device that the functions run on.
        inspect: Called with the name and the result of each subject's first run.

    Returns:
        Measurements by name, in the order of ``subjects``.
    """
    peaks: dict[str, int] = {}
    measured: dict[str, Measurement] = {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        for name, run in subjects.items():
            try:
                inspect(name, run())
                peaks[name] = peak_memory(run, device)
            except Exception as error:  # compilers and kernels raise their own types
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
    """Time the subjects in turn, after one warm-up run of each.

    Args:
        subjects: Functions by name.
        seconds: Timing budget in seconds, for all subjects together.
        device: Device that the functions run on.
        min_runs: Minimum number of timed runs per subject.

    Returns:
        Times of all timed runs in seconds, by name.
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
    """Return the peak memory that torch allocates during ``run()``, minus that before, in bytes.

    ``run`` must not free tensors that existed before. On a CPU, the profiler does not see that.
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
    """Return a function that runs ``module(x)`` without gradients.

    Args:
        module: A module with one tensor as input and one as output.
        x: Input of the module.
        precision: ``"32"`` without autocast, or the dtype of autocast.

    Returns:
        A function that returns the output.
    """

    def run() -> Tensor:
        with torch.no_grad(), autocast(x.device.type, precision):
            out: Tensor = module(x)
            return out

    return run


def training(
    module: nn.Module, x: Tensor, precision: Dtype, upstream: Tensor | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that runs ``module(x)`` and its backward pass.

    Args:
        module: A module with one tensor as input and one as output.
        x: Input of the module.
        precision: ``"32"`` without autocast, or the dtype of autocast.
        upstream: Gradient of the output. By default ones.

    Returns:
        A function that returns the gradients of ``x``, if it requires a gradient, and of the
        parameters in their order.
    """
    leaves = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]

    def run() -> tuple[Tensor, ...]:
        with autocast(x.device.type, precision):
            out = module(x)
        gradient = torch.ones_like(out) if upstream is None else upstream.to(out.dtype)
        # Unlike backward(), this stores no gradients, so every run is like the first.
        return torch.autograd.grad(out, leaves, gradient)

    return run
