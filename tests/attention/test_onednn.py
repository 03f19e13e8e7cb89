"""The implementation for CPUs with AVX-512 and without AMX: its products and its operators."""

import pytest
import torch

from botvision.attention import implementations, onednn, products, relative_attention_2d

needs_onednn = pytest.mark.skipif(
    "onednn" not in implementations("cpu"), reason="a CPU with AVX-512 and without AMX is required"
)


def tensors_of_a_map():
    """q, k, v and the tables for a map of 3x4."""
    shapes = [(2, 2, 12, 8)] * 3 + [(5, 8), (7, 8)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_onednn_operator_keeps_its_promises_to_the_compiler(keep, dtype):
    q, k, v = torch.randn(2, 12, 3, 2, 8).to(dtype).permute(2, 0, 3, 1, 4)
    tensors = [q, k, v, torch.randn(2, 2, 12, 3), torch.randn(2, 2, 12, 4)]
    leaves = [t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(onednn._attention, (*leaves, 0.3, keep))
    out, kept = onednn._attention(*tensors, 0.3, keep)
    torch.library.opcheck(onednn._attention_backward, (torch.randn_like(out), *tensors, kept, 0.3))


@needs_onednn
def test_second_derivatives_are_refused_rather_than_wrong():
    tensors = [t.requires_grad_() for t in tensors_of_a_map()]
    out = relative_attention_2d(*tensors, size=(3, 4), impl="onednn")
    (first,) = torch.autograd.grad(out.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 512, 128, 4096), (1, 512, 4096, 128), (32, 49, 128, 49)])
def test_float32_products_stay_float32(shape):
    """Reports a version of oneDNN that makes use of the permission to round to bfloat16."""
    batch, rows, inner, columns = shape
    left, right = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
    with products.exact_products():
        got = torch.bmm(left, right)
    want = left.double() @ right.double()
    assert (got - want).abs().max() < 2e-6 * want.abs().max()


def test_onednn_is_refused_where_its_products_would_be_rounded(monkeypatch):
    monkeypatch.setattr(products, "cpu_capabilities", lambda: {"avx512_f": True, "amx_tile": True})
    products._keeps_float32.cache_clear()
    try:
        assert "onednn" not in implementations("cpu")
        with pytest.raises(ValueError, match="without AMX only, not on this CPU"):
            relative_attention_2d(*tensors_of_a_map(), size=(3, 4), impl="onednn")
    finally:
        products._keeps_float32.cache_clear()
