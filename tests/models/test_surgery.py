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


@pytest.mark.parametrize("source", RESNETS)
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
        heads=8,
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
