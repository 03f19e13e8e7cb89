"""The benchmark of whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import nn

from botvision.bench.config import ModelBenchConfig
from botvision.bench.measure import inference, measure, training
from botvision.bench.report import Report, header, model_table, settings_of
from botvision.bench.rows import ModelRow
from botvision.bench.validate import bench_device, check_positive, check_writable
from botvision.errors import UserError
from botvision.models import create_model
from botvision.models.flops import count_multiply_adds, count_parameters

# A function that builds a model (images in, one tensor out), and the side of its images in pixels.
Builder = tuple[Callable[[], nn.Module], int]


def bench_models(config: ModelBenchConfig, *, quiet: bool = False) -> list[ModelRow]:
    """Measure whole models in turn and compare them with the first.

    Prints one table per mode and precision. An interrupted run prints and saves the rows that it
    has measured.

    Args:
        config: Options of the benchmark.
        quiet: Print nothing.

    Returns:
        One row per mode, precision and model.

    Raises:
        UserError: A model does not exist or does not run on images of its size, an option is
            invalid, or a file cannot be written.
    """
    config = replace(config, device=bench_device(config.device))
    check_positive(
        batch_size=config.batch_size, image_size=config.image_size, seconds=config.seconds
    )
    check_writable(json=config.json)
    models = {name: _builder(name, config.image_size) for name in config.models}
    report = Report(
        header("model", settings_of(config)), model_table, json=config.json, quiet=quiet
    )
    try:
        for group in measure_models(models, config, progress=report.progress):
            report.add(group)
    finally:
        report.close()
    return report.rows


def _builder(text: str, image_size: int) -> Builder:
    name, at, pixels = text.partition("@")
    if at and not (pixels.isdecimal() and int(pixels)):
        raise UserError(
            f"{text}: give NAME, or NAME@PIXELS, where PIXELS is the side of the images"
        )
    size = int(pixels) if at else image_size
    return partial(create_model, name, image_size=size), size


def measure_models(
    models: Mapping[str, Builder],
    config: ModelBenchConfig,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[list[ModelRow]]:
    """Measure all models in turn and yield one list of rows per mode and precision.

    In mode ``"train"``, the loss is the sum of the outputs.

    Args:
        models: Builders by name.
        config: Options of the benchmark, except ``models`` and ``image_size``, which are not used.
        progress: Called with a line that describes the next measurement.

    Yields:
        The rows of one mode and precision, one row per model.

    Raises:
        UserError: A model does not run on images of its size.
    """
    # Before the measurements, so that a model that cannot run is reported immediately.
    counts = {name: _count(name, build, size) for name, (build, size) in models.items()}
    built = {
        name: build().to(config.device).to(memory_format=torch.channels_last)
        for name, (build, _) in models.items()
    }
    random = torch.Generator().manual_seed(0)
    images = {
        name: torch.randn(config.batch_size, 3, size, size, generator=random)
        .to(config.device)
        .contiguous(memory_format=torch.channels_last)
        for name, (_, size) in models.items()
    }
    cases = list(product(config.mode, config.precision))
    for number, (mode, precision) in enumerate(cases, start=1):
        progress(f"{mode}, {precision}: {', '.join(models)} ({number} of {len(cases)})")
        if config.compile:
            torch.compiler.reset()
        make = training if mode == "train" else inference
        runs: dict[str, Callable[[], object]] = {}
        for name, model in built.items():
            model.train(mode == "train")
            if config.compile:
                model.compile(dynamic=False)
            runs[name] = make(model, images[name], precision)
        measured = measure(runs, seconds=config.seconds, device=config.device)
        first = next(iter(measured.values())).median_ms
        yield [
            ModelRow(
                mode=mode,
                precision=precision,
                model=name,
                image_size=models[name][1],
                batch_size=config.batch_size,
                parameters=counts[name][0],
                multiply_adds=counts[name][1],
                images_per_second=config.batch_size / one.median_ms * 1e3
                if one.median_ms
                else None,
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
