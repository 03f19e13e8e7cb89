"""Float32 matrix products at oneDNN's rate, on CPUs where that costs no accuracy.

PyTorch computes float32 products on a CPU with MKL, whose rate on some CPUs is half of oneDNN's. It
calls oneDNN instead if float32 products may round their factors to bfloat16. oneDNN makes use of
that permission only on CPUs with AMX. On others, its products stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from botvision.environment import cpu_capabilities


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def keeps_float32() -> bool:
    """Return whether oneDNN computes float32 products in float32 despite ``rounding_allowed``.

    This is the case on x86 CPUs with AVX-512 and without AMX. A product with a factor that is not a
    bfloat16 number confirms it, so a future oneDNN that rounds there is noticed.
    """
    return _keeps_float32()


@functools.cache
def _keeps_float32() -> bool:
    cpu = cpu_capabilities()
    if not cpu.get("avx512_f", False) or cpu.get("amx_tile", True):
        return False
    factor = torch.full((64, 64), 1 + 2**-12)
    with rounding_allowed():
        return torch.equal(factor @ torch.eye(64), factor)


@contextmanager
def rounding_allowed() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16; sums stay float32.

    The setting is PyTorch's and global: meanwhile it applies to other threads too.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def exact_products() -> AbstractContextManager[None]:
    """Return a context with float32 products by oneDNN if they stay float32, else an empty one.

    It is empty in compiled code, which cannot change PyTorch's settings.
    """
    if torch.compiler.is_compiling() or not keeps_float32():
        return nullcontext()
    return rounding_allowed()
