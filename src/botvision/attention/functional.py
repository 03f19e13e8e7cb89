"""The attention as a function, and the choice between its implementations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from botvision.attention import chunked, flex, onednn, reference, sdpa
from botvision.attention.implementation import Implementation
from botvision.attention.position import relative_logits

try:
    from botvision.attention import triton_attention
except ImportError:  # Triton exists for Linux only.
    triton_attention = None  # type: ignore[assignment]

_IMPLEMENTATIONS: dict[str, Implementation] = {
    module.IMPLEMENTATION.name: module.IMPLEMENTATION
    for module in (reference, sdpa, chunked, onednn, flex, triton_attention)
    if module is not None
}

# Crossovers measured on a CPU with AMX (benchmarks/README.md): in training, smaller maps are faster
# if the logits are kept than if they are recomputed.
_KEPT_TOKENS = 800
_KEPT_TOKENS_HALF = 300
# On a CPU without AMX, "onednn" is slower on 7x7 maps and faster on 14x14 maps.
_SMALL_TOKENS = 100


def implementations(device: torch.device | str) -> list[str]:
    """Return the names of the built-in implementations that run on ``device``.

    ``"reference"`` is always among them.
    """
    device = torch.device(device)
    return [name for name, one in _IMPLEMENTATIONS.items() if one.supports(device)]


def check_impl(impl: str | Implementation) -> None:
    """Check the argument ``impl`` of a layer or function.

    Raises:
        ValueError: ``impl`` is not ``"auto"``, the name of a built-in implementation or an
            ``Implementation``.
    """
    if impl != "auto" and not isinstance(impl, Implementation) and impl not in _IMPLEMENTATIONS:
        names = ", ".join(["auto", *_IMPLEMENTATIONS])
        raise ValueError(
            f"no attention implementation is named {impl!r}; choose one of {names}, or pass a "
            "botvision.attention.Implementation"
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    *,
    scale: float,
    impl: str | Implementation,
) -> Tensor:
    """Run an implementation on queries, keys, values and position logits.

    Args:
        q: queries (B, heads, N, d).
        k: keys, same shape.
        v: values, same shape.
        height_logits: (B, heads, N, H), or ``None`` without positions; see
            ``botvision.attention.reference.probabilities``.
        width_logits: (B, heads, N, W), or ``None`` without positions.
        scale: factor of ``q k^T``.
        impl: ``"auto"``, the name of a built-in implementation, or an ``Implementation``.

    Returns:
        (B, heads, N, d) in the dtype of ``v``.

    Raises:
        ValueError: ``impl`` is unknown or does not run on these inputs.
    """
    check_impl(impl)
    if impl == "auto":
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        impl = fastest(q, trained=trained, positions=height_logits is not None)
    if isinstance(impl, str):
        impl = _IMPLEMENTATIONS[impl]
    return impl.attend(q, k, v, height_logits, width_logits, scale)


def fastest(q: Tensor, *, trained: bool, positions: bool = True) -> str:
    """Return the name of the implementation that ``impl="auto"`` selects.

    Exported programs use ``"reference"``. A CPU with AVX-512 and without AMX uses ``"onednn"``,
    except for small maps. On other CPUs, the choice follows crossovers that were measured on one
    with AMX. On other devices it is ``"sdpa"``: the Triton kernel has not run on a GPU yet, so it
    must be selected by name.

    Args:
        q: queries (B, heads, N, d).
        trained: whether a backward pass follows.
        positions: whether there are position logits. Without them, ``"sdpa"`` is PyTorch's own
            ``scaled_dot_product_attention``.

    Returns:
        A name of ``implementations(q.device)``.
    """
    if torch.compiler.is_exporting() or q.device.type == "meta":
        return "reference"
    if positions and onednn.supports(q.device):
        return "reference" if q.shape[-2] < _SMALL_TOKENS else "onednn"
    if q.device.type == "cpu":
        kept = _KEPT_TOKENS_HALF if q.dtype.itemsize <= 2 else _KEPT_TOKENS
        if trained and q.shape[-2] < kept:
            return "reference"
        if positions:
            return "chunked"
    return "sdpa"


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which autocast, if enabled, computes products of ``tensor``."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and _has_autocast(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that disables autocast if it is enabled."""
    if _has_autocast(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def relative_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    *,
    size: tuple[int, int],
    scale_position: bool = True,
    impl: str | Implementation = "auto",
) -> Tensor:
    """Compute global self-attention with 2-D relative positions (paper, Figure 4).

    With ``s = d**-0.5``, a query at (i_h, i_w) and a key at (j_h, j_w)::

        logit = s q.k + s q.(height_rel[j_h - i_h + H - 1] + width_rel[j_w - i_w + W - 1])

    followed by a softmax over all H*W keys and the weighted sum of the values. Under autocast, q, k
    and v are cast to its dtype; logits and softmax stay float32 (float64 for float64 inputs).

    Args:
        q: queries (B, heads, H*W, d), not scaled, tokens in row-major order.
        k: keys, same shape.
        v: values, same shape.
        height_rel: (2H-1, d), shared by all heads.
        width_rel: (2W-1, d), shared by all heads.
        size: height and width (H, W) of the feature map.
        scale_position: whether to scale the position term too, as the authors' code does; use
            ``False`` for weights trained with timm's default.
        impl: ``"auto"``, one of ``implementations``, or an ``Implementation``.

    Returns:
        (B, heads, H*W, d).

    Raises:
        ValueError: the shapes do not fit ``size``, or ``impl`` is unknown.
    """
    height, width = size
    if q.shape[-2] != height * width:
        raise ValueError(
            f"q has {q.shape[-2]} tokens, but a map of {height}x{width} has {height * width}"
        )
    if height_rel.shape[0] != 2 * height - 1 or width_rel.shape[0] != 2 * width - 1:
        raise ValueError(
            f"a map of {height}x{width} needs tables of {2 * height - 1} and {2 * width - 1} rows, "
            f"not {height_rel.shape[0]} and {width_rel.shape[0]}"
        )
    scale = q.shape[-1] ** -0.5
    q, k, v = (t.to(autocast_dtype(t)) for t in (q, k, v))
    with no_autocast(q.device):
        queries = q.reshape(*q.shape[:2], *size, q.shape[-1])
        position_scale = scale if scale_position else 1.0
        logits = relative_logits(queries, height_rel, width_rel, position_scale)
        by_row, by_column = (of_map.flatten(2, 3) for of_map in logits)
        return attend(q, k, v, by_row, by_column, scale=scale, impl=impl)
