"""Whole models, run in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from botvision.bench.measure import Measurement, inference, measure, training
from botvision.config import Dtype, Mode
from botvision.errors import UserError
from botvision.models.flops import count_multiply_adds, count_parameters


@dataclass(frozen=True, kw_only=True)
class ModelRow(Measurement):
    """One model.

    Args:
        mode: ``"forward"`` or ``"train"``.
        precision: ``"32"``, ``"bf16"`` or ``"16"``.
        model: its name.
        image_size: side of the images, pixels.
        batch_size: images in a run.
        parameters: their number.
        multiply_adds: convolutions and products of the inference of one image.
        images_per_second: at the median time.
        ratio: median time over that of the first model.
    """

    mode: Mode
    precision: Dtype
    model: str
    image_size: int
    batch_size: int
    parameters: int
    multiply_adds: int
    images_per_second: float | None
    ratio: float | None


def bench_models(
    models: Mapping[str, tuple[Callable[[], nn.Module], int]],
    *,
    batch_size: int = 1,
    device: str = "cpu",
    precision: Sequence[Dtype] = ("32",),
    mode: Sequence[Mode] = ("forward",),
    seconds: float = 20.0,
    compile: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[list[ModelRow]]:
    """Measure all models in turn: each mode and precision gives one list of rows.

    Args:
        models: name to a function that makes the model (images in, one tensor out), and the side
            of its images, pixels.
        batch_size: images a run.
        device: ``"cpu"`` or ``"cuda"``.
        precision: of the products; ``"bf16"`` and ``"16"`` under autocast.
        mode: ``"forward"`` is inference, ``"train"`` the sum of the outputs and its backward pass.
        seconds: to spend on timing each mode and precision.
        compile: by ``torch.compile``.
        say: hears what comes next.

    Raises:
        UserError: a model does not take images of its size.
    """
    # Before anything is measured, so that what cannot work is known at once.
    figures = {name: _count(name, build, size) for name, (build, size) in models.items()}
    built = {
        name: build().to(device).to(memory_format=torch.channels_last)
        for name, (build, _) in models.items()
    }
    random = torch.Generator().manual_seed(0)
    images = {
        name: torch.randn(batch_size, 3, size, size, generator=random)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for name, (_, size) in models.items()
    }
    cases = list(product(mode, precision))
    for number, (one_mode, one_precision) in enumerate(cases, start=1):
        say(f"{one_mode}, {one_precision}: {', '.join(models)} ({number} of {len(cases)})")
        if compile:
            torch.compiler.reset()
        make = training if one_mode == "train" else inference
        runs: dict[str, Callable[[], object]] = {}
        for name, model in built.items():
            model.train(one_mode == "train")
            if compile:
                model.compile(dynamic=False)
            runs[name] = make(model, images[name], one_precision)
        measured = measure(runs, seconds=seconds, device=device)
        first = next(iter(measured.values())).median_ms
        yield [
            ModelRow(
                mode=one_mode,
                precision=one_precision,
                model=name,
                image_size=models[name][1],
                batch_size=batch_size,
                parameters=figures[name][0],
                multiply_adds=figures[name][1],
                images_per_second=batch_size / one.median_ms * 1e3 if one.median_ms else None,
                ratio=one.median_ms / first if one.median_ms and first else None,
                **vars(one),
            )
            for name, one in measured.items()
        ]


def _count(name: str, build: Callable[[], nn.Module], image_size: int) -> tuple[int, int]:
    try:
        with torch.device("meta"):
            model = build()
        return count_parameters(model), count_multiply_adds(model, image_size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: does not run on images of {image_size} px ({reason})") from error
