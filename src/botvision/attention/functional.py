"""One function, several implementations of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from botvision.attention import chunked, reference
from botvision.attention.position import relative_logits

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

_IMPLEMENTATIONS: dict[str, Attend] = {
    "reference": reference.attend,
    "chunked": chunked.attend,
}

# Up to 32x32 cells the logits of an image and head take 4 MiB in float32: little to save.
_REFERENCE_TOKENS = 1024


def implementations(device: torch.device | str) -> list[str]:
    """Names of the implementations that run on ``device``; ``"reference"`` is always among them."""
    torch.device(device)
    return list(_IMPLEMENTATIONS)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    impl: str,
) -> Tensor:
    """Run one implementation (or ``"auto"``) on scaled queries; see ``reference.attend``.

    Raises:
        ValueError: ``impl`` is not the name of an implementation.
    """
    if impl == "auto":
        impl = "reference" if q.shape[-2] <= _REFERENCE_TOKENS else "chunked"
    if impl not in _IMPLEMENTATIONS:
        names = ", ".join(["auto", *_IMPLEMENTATIONS])
        raise ValueError(f"no attention implementation is named {impl!r}; choose one of {names}")
    return _IMPLEMENTATIONS[impl](q, k, v, height_logits, width_logits)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off, on devices that have it (the meta device does not)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def accurate(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 (float64 stays), for logits that survive bf16 and fp16 autocast."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


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

    followed by a softmax over all H*W keys jointly and the sum of the values. Computed in float32
    (float64 for float64 inputs) whatever autocast says; the result has the dtype of ``v``.

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
    dtype = v.dtype
    with no_autocast(q.device):
        q, k, v, height_rel, width_rel = accurate(q, k, v, height_rel, width_rel)
        scaled = q * q.shape[-1] ** -0.5
        queries = (scaled if scale_position else q).reshape(*q.shape[:2], *size, q.shape[-1])
        height_logits, width_logits = relative_logits(queries, height_rel, width_rel)
        out = attend(scaled, k, v, height_logits.flatten(2, 3), width_logits.flatten(2, 3), impl)
    return out.to(dtype)
