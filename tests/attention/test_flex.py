"""flex_attention with our positions; without a GPU the formula alone, neither fused nor trained."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from botvision.attention import flex, implementations, reference


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (6, 2)])
def test_formula(size, monkeypatch):
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    height, width = size
    generator = torch.Generator().manual_seed(0)
    lengths = (16, 16, 16, height, width)
    tensors = [
        torch.randn(2, 3, height * width, length, generator=generator, dtype=torch.float64)
        for length in lengths
    ]
    with torch.no_grad():
        got = flex.attend(*tensors, 0.25)
    torch.testing.assert_close(got, reference.attend(*tensors, 0.25), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_without_positions(monkeypatch):
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    q, k, v = torch.randn(3, 2, 3, 20, 16, dtype=torch.float64)
    with torch.no_grad():
        got = flex.attend(q, k, v, None, None, 0.25)
    want = reference.attend(q, k, v, None, None, 0.25)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_is_for_gpus():
    assert "flex" not in implementations("cpu")
    assert "flex" in implementations("cuda") or "triton" not in implementations("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [(20, 33), (64, 64)])
def test_equals_the_reference_on_a_gpu(size):
    height, width = size
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = (64, 64, 64, height, width)
    tensors = [
        torch.randn(1, 2, height * width, length, generator=generator, device="cuda")
        for length in lengths
    ]
    tensors[:3] = (t.bfloat16() for t in tensors[:3])
    exact = [t.double().requires_grad_() for t in tensors]
    want = reference.attend(*exact, 0.125)
    upstream = torch.randn_like(want).bfloat16()
    leaves = [t.requires_grad_() for t in tensors]
    got = flex.attend(*leaves, 0.125)
    results = (got, *torch.autograd.grad(got, leaves, upstream))
    wants = (want, *torch.autograd.grad(want, exact, upstream.double()))
    for result, expected in zip(results, wants, strict=True):
        error = (result.double() - expected).abs().max()
        assert error <= 3 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
