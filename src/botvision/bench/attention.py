"""One attention layer, every implementation of it, and what it could be instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from botvision.attention import RelativeAttention2d, reference
from botvision.attention.functional import fastest
from botvision.attention.position import RelativePosition
from botvision.bench.measure import Measurement, inference, measure, training
from botvision.config import Dtype, Mode
from botvision.device import DTYPES

TIMM = "timm"
NO_POSITIONS = "no positions"
CONVOLUTION = "3x3 convolution"

# Cells in a batch, and images at most, where no batch size is given.
_CELLS = 2048
_IMAGES = 8
# Logits at once in float64: 128 MiB.
_LOGITS = 2**24


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What to measure.

    Args:
        sizes: maps (H, W), cells.
        impl: names of ``botvision.attention.implementations(device)``.
        dim: channels in and out, a multiple of 8 (timm's layer rounds others) and of ``heads``.
        heads: attention heads.
        batch_size: images; by default as many as have 2048 cells, from 1 to 8.
        device: ``"cpu"`` or ``"cuda"``.
        precision: of the products; ``"bf16"`` and ``"16"`` under autocast.
        mode: ``"forward"`` is inference, ``"train"`` a forward and backward pass.
        seconds: to spend on timing each row.
        compile: everything by ``torch.compile``.
    """

    sizes: Sequence[tuple[int, int]]
    impl: Sequence[str]
    dim: int = 512
    heads: int = 4
    batch_size: int | None = None
    device: str = "cpu"
    precision: Sequence[Dtype] = ("32", "bf16")
    mode: Sequence[Mode] = ("forward", "train")
    seconds: float = 5.0
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionRow(Measurement):
    """One subject on one map.

    Args:
        mode: ``"forward"`` or ``"train"``.
        precision: ``"32"``, ``"bf16"`` or ``"16"``.
        height: of the map, cells.
        width: likewise.
        batch_size: images.
        subject: name of an implementation, or ``TIMM``, ``NO_POSITIONS`` or ``CONVOLUTION``.
        auto: whether ``impl="auto"`` would choose it here.
        relative_error: norm of the difference from the float64 result over the norm of that result;
            in training, the largest over the gradients of the input and of all weights.
        ratio: timm's median time over this one's.
    """

    mode: Mode
    precision: Dtype
    height: int
    width: int
    batch_size: int
    subject: str
    auto: bool
    relative_error: float | None
    ratio: float | None


def bench_attention(
    settings: AttentionSettings, *, say: Callable[[str], None] = lambda line: None
) -> Iterator[list[AttentionRow]]:
    """Measure all subjects in turn: each mode, precision and map gives one list of rows.

    Args:
        settings: what to measure.
        say: hears what comes next.
    """
    cases = list(product(settings.mode, settings.precision, settings.sizes))
    for number, (mode, precision, size) in enumerate(cases, start=1):
        say(f"{mode}, {precision}, map {size[0]}x{size[1]} ({number} of {len(cases)})")
        yield _bench_map(settings, mode, precision, size)


def _bench_map(
    settings: AttentionSettings, mode: Mode, precision: Dtype, size: tuple[int, int]
) -> list[AttentionRow]:
    device = settings.device
    batch = settings.batch_size or max(1, min(_IMAGES, _CELLS // (size[0] * size[1])))
    random = torch.Generator().manual_seed(0)
    layer = _layer(settings, size, random)
    x, upstream = (
        # Rounded, so that the error is that of the layer and not of its input.
        torch.randn(batch, settings.dim, *size, generator=random).to(DTYPES[precision]).float()
        for _ in range(2)
    )
    x, upstream = (
        t.to(device).contiguous(memory_format=torch.channels_last) for t in (x, upstream)
    )
    x.requires_grad_(mode == "train")
    subjects = _subjects(settings, layer, size)
    want = exact(layer.to(device), x, upstream if mode == "train" else None)

    if settings.compile:
        # Each map's code would count towards the limit after which torch compiles no more.
        torch.compiler.reset()
    runs: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]] = {}
    for name, subject in subjects.items():
        subject.to(device).to(memory_format=torch.channels_last)
        if settings.compile:
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

    measured = measure(runs, seconds=settings.seconds, device=device, inspect=inspect)
    head = (settings.heads, size[0] * size[1], settings.dim // settings.heads)
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
    settings: AttentionSettings, size: tuple[int, int], random: torch.Generator
) -> RelativeAttention2d:
    """The layer whose weights all subjects have, its logits of standard deviation 1 to 2."""
    layer = RelativeAttention2d(settings.dim, size, num_heads=settings.heads)
    # As initialised for training, attention is all but uniform and hides errors.
    nn.init.normal_(layer.qkv.weight, std=settings.dim**-0.5, generator=random)
    assert isinstance(layer.pos_embed, RelativePosition)
    for table in layer.pos_embed.parameters():
        nn.init.normal_(table, std=1.0, generator=random)
    return layer


def _subjects(
    settings: AttentionSettings, layer: RelativeAttention2d, size: tuple[int, int]
) -> dict[str, nn.Module]:
    dim, heads = settings.dim, settings.heads
    subjects: dict[str, nn.Module] = {}
    for impl in settings.impl:
        subjects[impl] = RelativeAttention2d(dim, size, num_heads=heads, impl=impl)
        subjects[impl].load_state_dict(layer.state_dict())
    subjects[TIMM] = BottleneckAttn(dim, feat_size=size, num_heads=heads, scale_pos_embed=True)
    subjects[TIMM].load_state_dict(layer.state_dict())
    # Plain scaled_dot_product_attention: as fast as attention may hope to be.
    none = RelativeAttention2d(dim, size, num_heads=heads, position="none", impl="sdpa")
    none.qkv.load_state_dict(layer.qkv.state_dict())
    subjects[NO_POSITIONS] = none
    subjects[CONVOLUTION] = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
    return subjects


def exact(
    layer: RelativeAttention2d, x: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What a layer should give: the reference in float64, some queries at a time.

    Args:
        layer: with relative positions.
        x: input (B, dim, H, W).
        upstream: gradient of the result.

    Returns:
        The result (B, dim, H, W); given ``upstream``, the gradients of ``x`` and of the weights in
        their order instead.
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
