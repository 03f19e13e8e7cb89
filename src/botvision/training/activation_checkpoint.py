"""Activation checkpointing: less memory for more time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from botvision.models import stage_blocks


def recompute_blocks(body: nn.Module) -> None:
    """Keep only the input of each residual block, and recompute the rest in the backward pass.

    Args:
        body: a network, or the stages of one. A stage without residual blocks of its own is
            recomputed as a whole.
    """
    for stage in body.children():
        for block in stage_blocks(stage) or [stage]:
            if any(True for _ in block.parameters()):
                contexts = functools.partial(_contexts, block)
                block.forward = functools.partial(
                    checkpoint, block.forward, use_reentrant=False, context_fn=contexts
                )


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward pass and of its recomputation."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norm has seen this batch already: its running statistics stay."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
