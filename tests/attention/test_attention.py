"""The attention against a loop in float64 and against timm's own layer."""

import math

import numpy as np
import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor

from botvision.attention import (
    RelativeAttention2d,
    chunked,
    implementations,
    onednn,
    products,
    relative_attention_2d,
)

IMPLEMENTATIONS = implementations("cpu")


def loop_oracle(q, k, v, height_rel, width_rel, size, scale_position):
    """The closed form, one query, key and channel at a time."""
    height, width = size
    batch, heads, tokens, dim = q.shape
    out = np.zeros_like(v)
    for b, h, i in np.ndindex(batch, heads, tokens):
        i_h, i_w = divmod(i, width)
        query = q[b, h, i] / math.sqrt(dim)
        position_query = query if scale_position else q[b, h, i]
        logits = np.empty(tokens)
        for j in range(tokens):
            j_h, j_w = divmod(j, width)
            offset = height_rel[j_h - i_h + height - 1] + width_rel[j_w - i_w + width - 1]
            logits[j] = query @ k[b, h, j] + position_query @ offset
        weights = np.exp(logits - logits.max())
        out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out


def draw(size, *, batch=2, heads=2, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    shape = (batch, heads, height * width, dim)
    shapes = [shape, shape, shape, (2 * height - 1, dim), (2 * width - 1, dim)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 3), (4, 7)])
@pytest.mark.parametrize("scale_position", [True, False])
def test_equals_the_loop(impl, size, scale_position):
    tensors = draw(size)
    got = relative_attention_2d(*tensors, size=size, scale_position=scale_position, impl=impl)
    want = loop_oracle(*(t.numpy() for t in tensors), size, scale_position)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_by_finite_differences(impl, monkeypatch):
    monkeypatch.setattr(chunked, "TILE_LOGITS", 100)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_LOGITS", 50)
    monkeypatch.setattr(onednn, "TILE_LOGITS", 50)
    tensors = [t.requires_grad_() for t in draw((3, 4), batch=2, heads=2, dim=4)]

    def run(*args: Tensor) -> Tensor:
        return relative_attention_2d(*args, size=(3, 4), impl=impl)

    assert torch.autograd.gradcheck(run, tensors)


needs_onednn = pytest.mark.skipif(
    "onednn" not in IMPLEMENTATIONS, reason="a CPU with AVX-512 and without AMX is required"
)


@pytest.mark.parametrize("tile", [300, 3000, 10_000, 50_000])
@pytest.mark.parametrize("fused", [True, False])
def test_chunked_is_the_same_over_several_chunks(monkeypatch, tile, fused):
    monkeypatch.setattr(chunked, "_MATRIX_TOKENS", 1024 if fused else 0)
    monkeypatch.setattr(chunked, "TILE_LOGITS", tile)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_LOGITS", tile // 2)
    check_equals_the_reference("chunked")


@needs_onednn
@pytest.mark.parametrize("tile", [300, 3000, 10_000, 50_000])
@pytest.mark.parametrize("kept", [True, False])
def test_onednn_is_the_same_over_several_tiles(monkeypatch, tile, kept):
    monkeypatch.setattr(onednn, "KEPT_TOKENS", 1000 if kept else 0)
    monkeypatch.setattr(onednn, "TILE_LOGITS", tile)
    check_equals_the_reference("onednn")


def check_equals_the_reference(name):
    tensors = [t.requires_grad_() for t in draw((9, 13), batch=2, heads=3)]
    upstream = draw((9, 13), batch=2, heads=3, seed=1)[0]
    outs, grads = [], []
    for impl in ("reference", name):
        outs.append(relative_attention_2d(*tensors, size=(9, 13), impl=impl))
        grads.append(torch.autograd.grad(outs[-1], tensors, upstream))
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-13)
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_operator_keeps_its_promises_to_the_compiler(strided, dtype):
    q, k, v = torch.randn(2, 12, 3, 2, 8).to(dtype).permute(2, 0, 3, 1, 4)
    if not strided:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    tensors = [q, k, v, torch.randn(2, 2, 12, 3), torch.randn(2, 2, 12, 4)]
    leaves = [t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(chunked._attention, (*leaves, 0.3))
    out = chunked._attention(*tensors, 0.3)
    torch.library.opcheck(chunked._attention_backward, (torch.randn_like(out), *tensors, 0.3))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_queries_stay_finite(impl, dtype):
    """Logits beyond the range of float16."""
    q, k, *others = draw((5, 6))
    tensors = [t.to(dtype).requires_grad_() for t in (q * 1e4, k * 10, *others)]
    out = relative_attention_2d(*tensors, size=(5, 6), impl=impl)
    grads = torch.autograd.grad(out.float().sum(), tensors)
    assert (tensors[0] @ tensors[1].mT).isinf().any() or dtype == torch.bfloat16
    assert all(tensor.isfinite().all() for tensor in (out, *grads))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_of_products_is_left_as_it_was(dtype, impl):
    tensors = [t.to(dtype).requires_grad_() for t in draw((5, 6))]
    relative_attention_2d(*tensors, size=(5, 6), impl=impl).sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    with pytest.raises(RuntimeError), products.rounding_allowed():
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(7, 9), (26, 34)])
def test_half_precision_gradients_are_those_of_float64_to_a_rounding(dtype, size):
    tensors = [(t * 2).to(dtype) for t in draw(size, batch=2, heads=2, dim=16)]
    upstream = draw(size, batch=2, heads=2, dim=16, seed=1)[0].to(dtype)

    def gradients(tensors, impl):
        tensors = [t.requires_grad_() for t in tensors]
        out = relative_attention_2d(*tensors, size=size, impl=impl)
        return torch.autograd.grad(out, tensors, upstream.to(out.dtype))

    exact = gradients([t.double() for t in tensors], "reference")
    for impl in IMPLEMENTATIONS:
        for got, want in zip(gradients(tensors, impl), exact, strict=True):
            error = (got.double() - want).norm() / want.norm()
            assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [(6, 6), (4, 9)])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale_position", [True, False])
def test_timm_weights_load_and_give_the_same(size, impl, scale_position):
    torch.manual_seed(0)
    theirs = BottleneckAttn(
        64, feat_size=size, num_heads=4, scale_pos_embed=scale_position
    ).double()
    ours = RelativeAttention2d(64, size, scale_position=scale_position, impl=impl).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 64, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def module_oracle(module, x):
    """Content and position terms of the module, by explicit indexing."""
    batch, dim, height, width = x.shape
    heads, head_dim = module.num_heads, dim // module.num_heads
    weight = module.qkv.weight[:, :, 0, 0]
    q, k, v = (weight @ x.flatten(2)).reshape(batch, 3, heads, head_dim, -1).unbind(1)
    logits = torch.zeros(batch, heads, height * width, height * width, dtype=x.dtype)
    if module.content:
        logits += q.transpose(-1, -2) @ k
    if module.pos_embed is not None:
        vectors = torch.stack(
            [
                module.pos_embed.height_abs[j // width] + module.pos_embed.width_abs[j % width]
                for j in range(height * width)
            ]
        )
        logits += q.transpose(-1, -2) @ vectors.t()
    weights = (logits / math.sqrt(head_dim)).softmax(-1)
    return (v @ weights.transpose(-1, -2)).reshape(x.shape)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("position", "content"), [("absolute", True), ("absolute", False), ("none", True)]
)
def test_ablations(impl, position, content):
    torch.manual_seed(0)
    module = RelativeAttention2d(16, (3, 5), position=position, content=content, impl=impl)
    module = module.double()
    torch.nn.init.normal_(module.qkv.weight)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), module_oracle(module, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_content_the_keys_do_not_matter(impl):
    torch.manual_seed(0)
    module = RelativeAttention2d(16, (4, 3), content=False, impl=impl)
    torch.nn.init.normal_(module.qkv.weight)
    x = torch.randn(1, 16, 4, 3)
    before = module(x)
    with torch.no_grad():
        module.qkv.weight[16:32].normal_()
    torch.testing.assert_close(module(x), before)
    module(x).sum().backward()
    assert module.qkv.weight.grad is not None
    assert module.qkv.weight.grad[16:32].abs().max() == 0


def test_parameters_are_the_papers():
    module = RelativeAttention2d(512, (64, 64))
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "qkv.weight": (1536, 512, 1, 1),
        "pos_embed.height_rel": (127, 128),
        "pos_embed.width_rel": (127, 128),
    }
    assert module.qkv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert module.pos_embed.height_rel.std().item() == pytest.approx(128**-0.5, rel=0.05)


@pytest.mark.parametrize("size", [(3, 3), (4, 7), (10, 2), (13, 11)])
@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
@pytest.mark.parametrize("resize", ["slice", "interpolate"])
def test_any_map_size_after_construction(size, position, resize):
    module = RelativeAttention2d(16, (7, 7), position=position, table_resize=resize)
    assert module(torch.randn(2, 16, *size)).shape == (2, 16, *size)


def test_slicing_keeps_an_offset_of_two_cells():
    small = RelativeAttention2d(8, (3, 4), num_heads=2)
    large = RelativeAttention2d(8, (9, 6), num_heads=2, table_resize="slice")
    with torch.no_grad():
        large.qkv.weight.copy_(small.qkv.weight)
        for cells in range(-2, 3):
            large.pos_embed.height_rel[8 + cells] = small.pos_embed.height_rel[2 + cells]
        for cells in range(-3, 4):
            large.pos_embed.width_rel[5 + cells] = small.pos_embed.width_rel[3 + cells]
    x = torch.randn(1, 8, 3, 4)
    torch.testing.assert_close(large(x), small(x))


def test_interpolation_stretches_the_table_about_its_center():
    module = RelativeAttention2d(8, (5, 5), num_heads=2, table_resize="interpolate")
    with torch.no_grad():
        module.pos_embed.height_rel.copy_(torch.arange(-4.0, 5.0)[:, None].expand(9, 4))
    height, _ = module.pos_embed.tables((9, 5))
    np.testing.assert_allclose(height[:, 0].detach(), np.linspace(-4, 4, 17), atol=1e-6)
    height, _ = module.pos_embed.tables((3, 5))
    np.testing.assert_allclose(height[:, 0].detach(), np.linspace(-4, 4, 5), atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1)])
def test_stride_two_averages_after_the_attention_rounding_up(size):
    torch.manual_seed(0)
    plain = RelativeAttention2d(8, size, num_heads=2)
    strided = RelativeAttention2d(8, size, num_heads=2, stride=2)
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(1, 8, *size)
    got, full = strided(x), plain(x)
    height, width = size
    assert got.shape[-2:] == (math.ceil(height / 2), math.ceil(width / 2))
    for i, j in np.ndindex(*got.shape[-2:]):
        window = full[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        torch.testing.assert_close(got[..., i, j], window.mean((-2, -1)))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_stay_accurate_under_autocast(impl, dtype):
    """Logits of about 60: rounded to bf16 they are off by 0.25, the weights by a quarter."""
    q, k, v, height_rel, width_rel = draw((6, 5), dim=16, dtype=dtype)
    q, k = q * 4, k * 4
    tensors = [q, k, v, height_rel, width_rel]
    with torch.autocast("cpu", dtype=dtype):
        got = relative_attention_2d(*tensors, size=(6, 5), impl=impl)
    want = relative_attention_2d(*(t.double() for t in tensors), size=(6, 5), impl="reference")
    assert got.dtype == dtype
    # Only the result is rounded: half a unit in the last place of the largest values.
    error = (got.double() - want).abs().max().item()
    assert error <= want.abs().max().item() * torch.finfo(dtype).eps


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_stay_accurate_under_autocast(impl, monkeypatch):
    monkeypatch.setattr(chunked, "TILE_LOGITS", 200)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_LOGITS", 100)
    monkeypatch.setattr(onednn, "TILE_LOGITS", 100)
    rounded = draw((5, 6), dim=16, dtype=torch.bfloat16)
    upstream = draw((5, 6), dim=16, dtype=torch.bfloat16, seed=1)[0]
    grads = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in rounded]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = relative_attention_2d(*leaves, size=(5, 6), impl=impl)
        out.backward(upstream.to(dtype))
        grads[dtype] = [leaf.grad for leaf in leaves]
    for got, want in zip(grads[torch.bfloat16], grads[torch.float64], strict=True):
        error = (got.double() - want).abs().max().item()
        # Half a unit each for the weights, for their gradients and for the result.
        assert error <= want.abs().max().item() * 1.5 * torch.finfo(torch.bfloat16).eps


def test_probabilities_are_what_forward_uses():
    torch.manual_seed(0)
    module = RelativeAttention2d(16, (3, 4))
    torch.nn.init.normal_(module.qkv.weight)
    x = torch.randn(2, 16, 3, 4)
    weights = module.probabilities(x)
    assert weights.shape == (2, 4, 3, 4, 3, 4)
    v = module.qkv(x)[:, 32:].reshape(2, 4, 4, 3, 4)
    out = torch.einsum("bnhwyx,bncyx->bnchw", weights, v).reshape(2, 16, 3, 4)
    torch.testing.assert_close(out, module(x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"position": "sine"}, "position is"),
        ({"position": "none", "content": False}, "content term"),
        ({"stride": 4}, "stride is 1 or 2"),
        ({"table_resize": "crop"}, "table_resize is"),
        (
            {"impl": "fast"},
            "named 'fast'; choose one of auto, reference, sdpa, chunked, onednn, flex",
        ),
        ({"impl": "fast", "position": "none"}, "named 'fast'"),
        ({"impl": None}, "named None"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RelativeAttention2d(16, 4, **kwargs)


def test_bad_calls():
    tensors = draw((3, 4))
    with pytest.raises(ValueError, match="no attention implementation is named 'fast'"):
        relative_attention_2d(*tensors, size=(3, 4), impl="fast")
    with pytest.raises(ValueError, match="12 tokens"):
        relative_attention_2d(*tensors, size=(3, 5))
    with pytest.raises(ValueError, match="tables of 7 and 5 rows"):
        relative_attention_2d(*tensors, size=(4, 3))
