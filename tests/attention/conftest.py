"""Triton's interpreter for the tests of its kernels, where there is no GPU.

A kernel is interpreted if TRITON_INTERPRET is set while Triton and the kernel are imported, so they
are imported here, before any test. Nothing runs them unless it is set again, as in test_triton.
"""

import pytest
import torch

with pytest.MonkeyPatch.context() as patch:
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    import botvision.attention  # noqa: F401
