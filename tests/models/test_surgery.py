"""to_botnet on timm's and torchvision's ResNets: "and no other changes"."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import BlurPool2d
from torch import nn

import botvision
from botvision.attention import RelativeAttention2d

RESNETS = {
    "timm": lambda: timm.create_model("resnet50"),
    "torchvision": lambda: torchvision.models.resnet50(),
    "timm-d": lambda: timm.create_model("resnet50d"),
    "timm-blur": lambda: timm.create_model("resnet50", aa_layer=BlurPool2d),
    "timm-dilated": lambda: timm.create_model("resnet50", output_stride=16),
}


def features(resnet, x):
    """The output of layer4, by hand."""
    x = resnet.maxpool(
        getattr(resnet, "act1", getattr(resnet, "relu", None))(resnet.bn1(resnet.conv1(x)))
    )
    return resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))


@pytest.mark.parametrize("source", [name for name in RESNETS if name != "timm-dilated"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (90, 135)])
def test_strides_and_odd_maps(source, stride, size):
    model = botvision.to_botnet(RESNETS[source](), 64, stride=stride).eval()
    with torch.inference_mode():
        shape = features(model, torch.randn(1, 3, *size)).shape[-2:]
    assert tuple(shape) == tuple(-(-side // (16 * stride)) for side in size)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_only_the_three_convolutions_change_and_every_other_weight_stays(source):
    resnet = RESNETS[source]()
    before = copy.deepcopy(resnet.state_dict())
    after = botvision.to_botnet(resnet).state_dict()
    assert set(before) - set(after) == {f"layer4.{i}.conv2.weight" for i in range(3)}
    new = set(after) - set(before)
    assert new == {
        f"layer4.{i}.conv2.{name}"
        for i in range(3)
        for name in ("qkv.weight", "pos_embed.height_rel", "pos_embed.width_rel")
    }
    for name in set(before) & set(after):
        assert torch.equal(before[name], after[name]), name
    assert after["layer4.0.conv2.pos_embed.height_rel"].shape == (27, 128)
    assert after["layer4.1.conv2.pos_embed.height_rel"].shape == (13, 128)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_block_by_hand(stride):
    """1x1, MHSA, pool, BN, ReLU, 1x1, BN, plus the projected shortcut, then ReLU."""
    torch.manual_seed(0)
    model = botvision.to_botnet(torchvision.models.resnet50(), (96, 80), stride=stride).eval()
    block = model.layer4[0]
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    x = torch.randn(2, 1024, 6, 5)
    y = block.bn1(nn.functional.conv2d(x, block.conv1.weight)).relu()
    attention = RelativeAttention2d(512, (6, 5), impl="reference")
    attention.load_state_dict(block.conv2.state_dict())
    y = attention(y)
    if stride == 2:
        y = nn.functional.avg_pool2d(y, 2, ceil_mode=True)
    y = block.bn2(y).relu()
    y = block.bn3(nn.functional.conv2d(y, block.conv3.weight))
    shortcut = nn.functional.conv2d(x, block.downsample[0].weight, stride=stride)
    shortcut = block.downsample[1](shortcut)
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_shortcut_activation_is_an_option(source):
    x = torch.randn(1, 1024, 4, 4)
    plain = botvision.to_botnet(RESNETS[source]()).eval()
    gist = botvision.to_botnet(RESNETS[source](), shortcut_activation=True).eval()
    assert plain.layer4[0].downsample(x).min() < 0
    assert gist.layer4[0].downsample(x).min() == 0
    assert set(plain.state_dict()) == set(gist.state_dict())


def test_position_tables_follow_an_oblong_image():
    model = botvision.to_botnet(torchvision.models.resnet50(), (800, 1333))
    first, second = (model.layer4[i].conv2.pos_embed for i in (0, 1))
    assert (first.height_rel.shape[0], first.width_rel.shape[0]) == (2 * 50 - 1, 2 * 84 - 1)
    assert (second.height_rel.shape[0], second.width_rel.shape[0]) == (2 * 25 - 1, 2 * 42 - 1)


def test_options_reach_every_layer():
    model = botvision.to_botnet(
        torchvision.models.resnet50(),
        num_heads=8,
        position="absolute",
        content=False,
        scale_position=False,
        table_resize="slice",
        impl="chunked",
    )
    layers = [m for m in model.modules() if isinstance(m, RelativeAttention2d)]
    assert len(layers) == 3
    for layer in layers:
        assert (layer.num_heads, layer.content, layer.scale_position) == (8, False, False)
        assert (layer.impl, layer.pos_embed.table_resize) == ("chunked", "slice")
        assert layer.pos_embed.height_abs.shape[1] == 64


@pytest.mark.parametrize(
    "model", [lambda: timm.create_model("resnet18"), lambda: timm.create_model("resnest14d")]
)
def test_refuses_what_has_no_plain_bottlenecks(model):
    with pytest.raises(ValueError, match="bottleneck ResNet of timm or torchvision"):
        botvision.to_botnet(model())


def test_refuses_other_strides():
    with pytest.raises(ValueError, match="stride is 1 or 2"):
        botvision.to_botnet(torchvision.models.resnet50(), stride=4)


@pytest.mark.parametrize("source", [name for name in RESNETS if name != "timm-dilated"])
@pytest.mark.parametrize("blocks", [(2,), (-1,), (1, 2), (0,), (0, -1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_attention_in_some_blocks(source, blocks, stride):
    """The others keep their convolution and its weight; maps and tables follow the strides."""
    resnet = RESNETS[source]()
    kernels = [block.conv2.weight.clone() for block in resnet.layer4]
    model = botvision.to_botnet(resnet, (90, 135), blocks=blocks, stride=stride).eval()
    attended = {index % 3 for index in blocks}
    for index, block in enumerate(model.layer4):
        if index in attended:
            cells = (6, 9) if index == 0 or stride == 1 else (3, 5)
            tables = block.conv2.pos_embed
            assert tables.height_rel.shape[0] == 2 * cells[0] - 1
            assert tables.width_rel.shape[0] == 2 * cells[1] - 1
        else:
            assert torch.equal(block.conv2.weight, kernels[index])
    with torch.inference_mode():
        shape = features(model, torch.randn(1, 3, 90, 135)).shape[-2:]
    assert tuple(shape) == ((6, 9) if stride == 1 else (3, 5))


@pytest.mark.parametrize("source", ["timm", "torchvision", "timm-d", "timm-blur"])
def test_a_first_block_that_keeps_its_convolution_computes_what_it_did(source):
    torch.manual_seed(0)
    resnet = RESNETS[source]().eval()
    x = torch.randn(1, 1024, 6, 9)
    with torch.inference_mode():
        want = resnet.layer4[0](x)
        model = botvision.to_botnet(resnet, blocks=(1, 2), shortcut_activation=True)
        torch.testing.assert_close(model.layer4[0](x), want, rtol=0, atol=0)


@pytest.mark.parametrize("source", RESNETS)
def test_a_first_block_that_keeps_its_convolution_at_stride_1(source):
    torch.manual_seed(0)
    block = botvision.to_botnet(RESNETS[source](), blocks=(2,), stride=1).eval().layer4[0]
    nn.init.normal_(block.bn3.weight)
    x = torch.randn(1, 1024, 6, 9)
    y = block.bn1(nn.functional.conv2d(x, block.conv1.weight)).relu()
    y = block.bn2(nn.functional.conv2d(y, block.conv2.weight, padding=1)).relu()
    y = block.bn3(nn.functional.conv2d(y, block.conv3.weight))
    *_, kernel, norm = block.downsample
    shortcut = norm(nn.functional.conv2d(x, kernel.weight))
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@pytest.mark.parametrize("blocks", [(), (3,), (-4,), (0, 7)])
def test_refuses_blocks_that_are_not_there(blocks):
    with pytest.raises(ValueError, match="blocks is one or more of 0 to 2"):
        botvision.to_botnet(torchvision.models.resnet50(), blocks=blocks)
