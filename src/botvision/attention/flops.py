"""Formulas with which torch's ``FlopCounterMode`` counts our custom operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


def count_products(operator: Any, products: int) -> None:
    """Count ``operator(x, ...)``, x (B, heads, N, d), as this many products of N x N x d."""

    @register_flop_formula(operator)
    def flops(shape: torch.Size, *_: Any, **__: Any) -> int:
        batch, heads, tokens, dim = shape
        return 2 * products * batch * heads * tokens**2 * dim
