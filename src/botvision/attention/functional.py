"""One function, several implementations of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from botvision.attention import chunked, flex, reference, sdpa
from botvision.attention.position import relative_logits

try:
    from botvision.attention import triton_attention as triton
except ImportError:  # Triton is made for Linux alone.
    triton = None  # type: ignore[assignment]

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]

_IMPLEMENTATIONS: dict[str, Attend] = {
    "reference": reference.attend,
    "chunked": chunked.attend,
    "sdpa": sdpa.attend,
    "flex": flex.attend,
}
if triton is not None:
    _IMPLEMENTATIONS["triton"] = triton.attend

# Measured crossovers on a CPU (benchmarks/README.md). Maps of fewer cells train faster with their
# logits kept than recomputed.
_KEPT_CELLS = 800
_KEPT_CELLS_HALF = 300


def implementations(device: torch.device | str) -> list[str]:
    """Names of the implementations that run on ``device``; ``"reference"`` is always among them."""
    device = torch.device(device)
    names = ["reference", "sdpa"]
    if device.type == "cpu":
        names.append("chunked")
    if device.type == "cuda" and triton is not None:
        names.append("flex")
    if triton is not None and triton.available(device):
        names.append("triton")
    return names


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    *,
    scale: float,
    impl: str,
) -> Tensor:
    """Run one implementation (or ``"auto"``); see ``reference.probabilities`` for the arguments.

    Raises:
        ValueError: ``impl`` is not the name of an implementation, or does not run on these inputs.
    """
    if impl != "auto" and impl not in _IMPLEMENTATIONS:
        names = ", ".join(["auto", *_IMPLEMENTATIONS])
        raise ValueError(f"no attention implementation is named {impl!r}; choose one of {names}")
    if impl == "auto":
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        impl = fastest(q, trained=trained)
    if impl == "reference":
        return reference.attend(q, k, v, height_logits, width_logits, scale)
    if height_logits is None or width_logits is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _IMPLEMENTATIONS[impl](q, k, v, height_logits, width_logits, scale)


def fastest(q: Tensor, *, trained: bool) -> str:
    """What ``impl="auto"`` takes for queries (B, heads, N, d); an exported program the reference.

    ``trained``: with a backward pass to follow. On a CPU by measured crossovers; on a GPU, where
    nothing has been measured yet, our own kernel where it runs.
    """
    tokens = q.shape[-2]
    if torch.compiler.is_exporting() or q.device.type == "meta":
        return "reference"
    if q.device.type == "cpu":
        kept = _KEPT_CELLS_HALF if q.dtype.itemsize <= 2 else _KEPT_CELLS
        return "reference" if trained and tokens < kept else "chunked"
    if triton is not None and triton.available(q.device) and triton.fits(q):
        return "triton"
    return "sdpa"


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which autocast, where it is on, wants products of ``tensor``."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and _has_autocast(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off where it is on."""
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
    impl: str = "auto",
) -> Tensor:
    """Global self-attention with 2-D relative positions (paper, Figure 4).

    With ``s = d**-0.5``, query cell (i_h, i_w) and key cell (j_h, j_w)::

        logit = s q.k + s q.(height_rel[j_h - i_h + H - 1] + width_rel[j_w - i_w + W - 1])

    followed by a softmax over all H*W keys jointly and the sum of the values. Under autocast q, k
    and v take its dtype; logits and softmax are float32 all the same (float64 for float64).

    Args:
        q: queries (B, heads, H*W, d), not scaled, cells in row-major order.
        k: keys, same shape.
        v: values, same shape.
        height_rel: (2H-1, d), shared by the heads.
        width_rel: (2W-1, d), shared by the heads.
        size: (H, W) of the map.
        scale_position: scale the position term too, as the authors' code does; ``False`` for
            weights trained with timm's default.
        impl: ``"auto"`` or one of :func:`implementations`.

    Returns:
        (B, heads, H*W, d).

    Raises:
        ValueError: shapes that do not fit ``size``, or an unknown ``impl``.
    """
    height, width = size
    if q.shape[-2] != height * width:
        raise ValueError(f"q has {q.shape[-2]} tokens, but a map of {height}x{width} has others")
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
