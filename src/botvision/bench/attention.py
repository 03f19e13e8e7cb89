"""The benchmark of one attention layer: its implementations and alternatives to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from botvision.attention import RelativeAttention2d, implementations, reference
from botvision.attention.functional import fastest
from botvision.attention.position import RelativePosition
from botvision.bench.config import AttentionBenchConfig
from botvision.bench.measure import Measurement, inference, measure, training
from botvision.bench.plot import plot_attention
from botvision.bench.report import Report, attention_table, header, settings_of
from botvision.bench.rows import CONVOLUTION, NO_POSITIONS, TIMM, AttentionRow
from botvision.bench.validate import bench_device, check_positive, check_writable
from botvision.config import Dtype, Mode
from botvision.device import DTYPES
from botvision.errors import UserError

# Default batch size: as many images as have `_CELLS` cells, at most `_IMAGES`.
_CELLS = 2048
_IMAGES = 8
# Maximum number of float64 logits in memory at once: 128 MiB.
_LOGITS = 2**24


def bench_attention(config: AttentionBenchConfig, *, quiet: bool = False) -> list[AttentionRow]:
    """Measure one layer in every implementation, timm's layer and a 3x3 convolution.

    Prints one table per mode and precision, and writes the files that ``config`` names. An
    interrupted run prints, saves and plots the rows that it has measured.

    Args:
        config: Options of the benchmark.
        quiet: Print nothing.

    Returns:
        One row per mode, precision, map and layer.

    Raises:
        UserError: An option is invalid, or a file cannot be written.
    """
    config = validate(config)
    settings = {**settings_of(config), "sizes": [_map_size(size) for size in config.sizes]}
    report = Report(header("attention", settings), attention_table, json=config.json, quiet=quiet)
    try:
        for group in measure_attention(config, progress=report.progress):
            report.add(group)
    finally:
        report.close()
        if config.plot is not None and report.rows:
            plot_attention(report.rows, config.plot)
    return report.rows


def validate(config: AttentionBenchConfig) -> AttentionBenchConfig:
    """Check the options.

    Returns:
        The options with the device and the implementations filled in.

    Raises:
        UserError: An option is invalid, or a file cannot be written.
    """
    device = bench_device(config.device)
    known = implementations(device)
    for name in config.impl or ():
        if name not in known:
            message = f"not available on {device}; choose from {', '.join(known)}"
            raise UserError(message, parameter="impl", value=name)
    dim, num_heads = config.dim, config.num_heads
    check_positive(
        dim=dim, num_heads=num_heads, batch_size=config.batch_size, seconds=config.seconds
    )
    if dim % 8 or dim % num_heads:
        multiple = f"must be a multiple of 8 and of `num_heads` {num_heads}"
        raise UserError(f"{multiple}; timm's layer rounds other values", parameter="dim", value=dim)
    for size in config.sizes:
        _map_size(size)
    if config.plot is not None and config.plot.suffix != ".png":
        raise UserError("give a file that ends in .png", parameter="plot", value=config.plot)
    check_writable(json=config.json, plot=config.plot)
    return replace(config, device=device, impl=config.impl or known)


def _map_size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        message = "give the size of a map in cells, such as 14 or 50x84 (height x width)"
        raise UserError(message, parameter="sizes", value=text)
    return int(sides[0]), int(sides[-1])


def measure_attention(
    config: AttentionBenchConfig, *, progress: Callable[[str], None] = lambda line: None
) -> Iterator[list[AttentionRow]]:
    """Measure all layers in turn and yield one list of rows per mode, precision and map.

    Args:
        config: Options that ``validate`` has returned.
        progress: Called with a line that describes the next measurement.

    Yields:
        The rows of one mode, precision and map, one row per layer.
    """
    sizes = [_map_size(size) for size in config.sizes]
    cases = list(product(config.mode, config.precision, sizes))
    for number, (mode, precision, size) in enumerate(cases, start=1):
        progress(f"{mode}, {precision}, map {size[0]}x{size[1]} ({number} of {len(cases)})")
        yield _measure_map(config, mode, precision, size)


def _measure_map(
    config: AttentionBenchConfig, mode: Mode, precision: Dtype, size: tuple[int, int]
) -> list[AttentionRow]:
    device = config.device
    batch = config.batch_size or max(1, min(_IMAGES, _CELLS // (size[0] * size[1])))
    random = torch.Generator().manual_seed(0)
    layer = _layer(config, size, random)
    x, upstream = (
        # Rounded first, so that the error does not include the rounding of the input.
        torch.randn(batch, config.dim, *size, generator=random).to(DTYPES[precision]).float()
        for _ in range(2)
    )
    x, upstream = (
        t.to(device).contiguous(memory_format=torch.channels_last) for t in (x, upstream)
    )
    x.requires_grad_(mode == "train")
    subjects = _subjects(config, layer, size)
    want = exact(layer.to(device), x, upstream if mode == "train" else None)

    if config.compile:
        # Otherwise the code of each map would count towards torch's limit of recompilations.
        torch.compiler.reset()
    runs: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]] = {}
    for name, subject in subjects.items():
        subject.to(device).to(memory_format=torch.channels_last)
        if config.compile:
            subject.compile(dynamic=False)
        runs[name] = (
            training(subject, x, precision, upstream)
            if mode == "train"
            else inference(subject, x, precision)
        )
    errors: dict[str, float] = {}

    def inspect(name: str, result: Tensor | tuple[Tensor, ...]) -> None:
        if name not in (NO_POSITIONS, CONVOLUTION):
            results = (result,) if isinstance(result, Tensor) else result
            errors[name] = max(map(_relative_error, results, want))

    measured = measure(runs, seconds=config.seconds, device=device, inspect=inspect)
    head = (config.num_heads, size[0] * size[1], config.dim // config.num_heads)
    queries = torch.empty(batch, *head, dtype=DTYPES[precision], device=device)
    chosen = fastest(queries, trained=mode == "train")
    return [
        AttentionRow(
            mode=mode,
            precision=precision,
            height=size[0],
            width=size[1],
            batch_size=batch,
            subject=name,
            auto=name == chosen,
            relative_error=errors.get(name),
            ratio=_ratio(measured[TIMM], one),
            **vars(one),
        )
        for name, one in measured.items()
    ]


def _layer(
    config: AttentionBenchConfig, size: tuple[int, int], random: torch.Generator
) -> RelativeAttention2d:
    """Return the layer with the shared weights. Its logits have a standard deviation of 1 to 2."""
    layer = RelativeAttention2d(config.dim, size, num_heads=config.num_heads)
    # With the initialization of training, attention is almost uniform, which hides errors.
    nn.init.normal_(layer.qkv.weight, std=config.dim**-0.5, generator=random)
    assert isinstance(layer.pos_embed, RelativePosition)
    for table in layer.pos_embed.parameters():
        nn.init.normal_(table, std=1.0, generator=random)
    return layer


def _subjects(
    config: AttentionBenchConfig, layer: RelativeAttention2d, size: tuple[int, int]
) -> dict[str, nn.Module]:
    dim, num_heads = config.dim, config.num_heads
    subjects: dict[str, nn.Module] = {}
    assert config.impl is not None
    for impl in config.impl:
        subjects[impl] = RelativeAttention2d(dim, size, num_heads=num_heads, impl=impl)
        subjects[impl].load_state_dict(layer.state_dict())
    subjects[TIMM] = BottleneckAttn(dim, feat_size=size, num_heads=num_heads, scale_pos_embed=True)
    subjects[TIMM].load_state_dict(layer.state_dict())
    # Plain scaled_dot_product_attention: a bound on the speed of attention.
    none = RelativeAttention2d(dim, size, num_heads=num_heads, position="none", impl="sdpa")
    none.qkv.load_state_dict(layer.qkv.state_dict())
    subjects[NO_POSITIONS] = none
    subjects[CONVOLUTION] = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
    return subjects


def exact(
    layer: RelativeAttention2d, x: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Compute the result of a layer in float64 with the reference implementation.

    The queries are processed in parts to limit memory use.

    Args:
        layer: A layer with relative positions.
        x: Input (B, dim, H, W).
        upstream: Gradient of the result (B, dim, H, W).

    Returns:
        The result (B, dim, H, W), float64. With ``upstream``, the gradients of ``x`` and of the
        parameters in their order instead.
    """
    layer = copy.deepcopy(layer).double()
    x = x.detach().double().requires_grad_()
    batch, dim, height, width = x.shape
    assert layer.pos_embed is not None
    with torch.set_grad_enabled(upstream is not None):
        q, k, v = layer.qkv(x).view(batch, 3, layer.num_heads, -1, height * width).unbind(1)
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))
        queries = q.reshape(batch, layer.num_heads, height, width, -1)
        by_row, by_column = (t.flatten(2, 3) for t in layer.pos_embed(queries, scale=layer.scale))
        rows = max(1, _LOGITS // (batch * layer.num_heads * height * width))
        parts = [
            checkpoint(reference.attend, a, k, v, b, c, layer.scale, use_reentrant=False)
            for a, b, c in zip(*(t.split(rows, 2) for t in (q, by_row, by_column)), strict=True)
        ]
        out = torch.cat(parts, dim=2).transpose(2, 3).reshape(batch, dim, height, width)
    if upstream is None:
        return (out,)
    return torch.autograd.grad(out, [x, *layer.parameters()], upstream.double())


def _relative_error(result: Tensor, want: Tensor) -> float:
    return float((result.double() - want).norm() / want.norm())


def _ratio(timm: Measurement, one: Measurement) -> float | None:
    if timm.median_ms is None or one.median_ms is None:
        return None
    return timm.median_ms / one.median_ms
