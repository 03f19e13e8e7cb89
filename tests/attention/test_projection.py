"""The projection to q, k and v is a module like any other: hooks, adapters, memory."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from botvision.attention import RelativeAttention2d


class LowRank(nn.Module):
    """A frozen projection and a trained difference of low rank, as LoRA has them."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv.requires_grad_(False)
        self.down = nn.Conv2d(conv.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


USES = [RelativeAttention2d.forward, RelativeAttention2d.probabilities]


@pytest.mark.parametrize("use", USES)
def test_hooks_of_the_projection_are_called(use):
    layer = RelativeAttention2d(16, (3, 4))
    x = torch.randn(2, 16, 3, 4)
    shapes = []
    layer.qkv.register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    before = use(layer, x)
    assert shapes == [(2, 48, 3, 4)]
    layer.qkv.register_forward_hook(lambda module, inputs, out: 100 * out)
    assert not torch.allclose(use(layer, x), before)


@pytest.mark.parametrize("use", USES)
def test_the_projection_can_be_replaced(use):
    torch.manual_seed(0)
    layer = RelativeAttention2d(16, (3, 4)).double()
    nn.init.normal_(layer.qkv.weight)
    merged = deepcopy(layer)
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    before = use(layer, x)
    conv = layer.qkv
    layer.qkv = nn.Sequential(conv)
    assert torch.equal(use(layer, x), before)
    layer.qkv = LowRank(conv).double()
    after = use(layer, x)
    assert not torch.allclose(after, before)
    difference = layer.qkv.up.weight.flatten(1) @ layer.qkv.down.weight.flatten(1)
    with torch.no_grad():
        merged.qkv.weight += difference[..., None, None]
    torch.testing.assert_close(after, use(merged, x))
    after.square().sum().backward()
    assert layer.qkv.up.weight.grad.any() and layer.qkv.down.weight.grad.any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(3, 4), (1, 5), (1, 1)])
def test_heads_are_dense_in_memory_and_channels_last_maps_are_not_copied(memory_format, size):
    layer = RelativeAttention2d(16, size)
    x = torch.randn(2, 16, *size).contiguous(memory_format=memory_format)
    seen = []
    layer.qkv.register_forward_hook(lambda module, inputs, out: seen.append((*inputs, out)))
    q, k, v, _, _ = layer._terms(x)
    ((given, projected),) = seen
    assert memory_format == torch.contiguous_format or given.data_ptr() == x.data_ptr()
    for head in (q, k, v):
        assert head.stride() == (48 * size[0] * size[1], 4, 48, 1)
        assert head.untyped_storage().data_ptr() == projected.untyped_storage().data_ptr()
    layer.qkv = nn.Sequential(layer.qkv, nn.Flatten(2), nn.Unflatten(2, size))
    assert layer._terms(x)[0].stride() == q.stride()
