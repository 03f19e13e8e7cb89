"""Output strides and dilation: what was asked for is what the network has, or an error."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation import deeplabv3_resnet50

import botvision
from botvision.attention import RelativeAttention2d
from botvision.errors import UserError
from botvision.models.ablations import insert_bot

SHALLOW = {"layers": (1, 1, 2, 2), "channels": (16, 16, 32, 64)}
WITH_TABLES = [
    name for name in botvision.list_models() if "senet" not in name and "_nl_" not in name
]
WITHOUT = [name for name in botvision.list_models() if name not in WITH_TABLES]
# Models with stride 1 in the last stage.
S1 = ["botnet50_s1", *(name for name in botvision.list_models() if name.startswith("botnet_t"))]


def tables(model):
    """Height and width that the tables of each attention layer are made for, by name."""
    return {
        name: tuple((table.shape[0] + 1) // 2 for table in layer.pos_embed.parameters())
        for name, layer in model.named_modules()
        if isinstance(layer, RelativeAttention2d)
    }


def seen(model, x):
    """Height and width of the map that each attention layer receives, by name."""
    sizes = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.update({name: tuple(inputs[0].shape[-2:])})
        )
        for name, layer in model.named_modules()
        if isinstance(layer, RelativeAttention2d)
    ]
    with torch.inference_mode():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return sizes


def sizes(model, x):
    with torch.inference_mode():
        return [tuple(feature.shape[-2:]) for feature in model.eval()(x)]


@pytest.mark.parametrize("name", [*WITH_TABLES, *WITHOUT])
@pytest.mark.parametrize("output_stride", [16, 32])
def test_features_have_the_sizes_of_timms_resnet50(name, output_stride):
    x = torch.randn(1, 3, 90, 135)
    options = {"features_only": True, "output_stride": output_stride}
    model = botvision.create_model(name, image_size=(90, 135), **options, **SHALLOW)
    # The S1 models have stride 1 whatever the output stride.
    options["output_stride"] = 16 if name in S1 else output_stride
    twin = timm.create_model("resnet50", **options, **SHALLOW)
    assert sizes(model, x) == sizes(twin, x)
    assert model.feature_info.reduction() == twin.feature_info.reduction()
    assert tables(model) == seen(model, x)
    assert bool(tables(model)) == (name in WITH_TABLES)


def test_an_output_stride_of_16_is_botnet_s1():
    torch.manual_seed(0)
    one = botvision.create_model("botnet50", image_size=64, output_stride=16, **SHALLOW)
    torch.manual_seed(0)
    other = botvision.create_model("botnet50_s1", image_size=64, **SHALLOW)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", WITH_TABLES)
@pytest.mark.parametrize("output_stride", [4, 8, 64, "16"])
def test_other_output_strides_are_one_line(name, output_stride):
    with pytest.raises(ValueError, match=r"output_stride is 16 or 32, not .*no dilation") as error:
        timm.create_model(name, output_stride=output_stride, **SHALLOW)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WITHOUT)
def test_networks_of_convolutions_have_timms_dilation(name):
    x = torch.randn(1, 3, 64, 64)
    options = {"features_only": True, "output_stride": 8, **SHALLOW}
    twin = timm.create_model("resnet50", **options)
    assert sizes(botvision.create_model(name, **options), x) == sizes(twin, x)
    with pytest.raises(ValueError, match="output_stride is 8 or 16 or 32, not 4"):
        timm.create_model(name, output_stride=4, **SHALLOW)


def test_a_contradiction_is_one_line():
    with pytest.raises(UserError, match=r"botnet50: the last stage has stride 1, .* would undo"):
        botvision.create_model("botnet50", output_stride=16, stride=2, **SHALLOW)


def dilated_like_smp(resnet, stages):
    """What segmentation_models_pytorch does to an encoder: the blocks' attributes stay."""
    for name, dilation in stages.items():
        for module in getattr(resnet, name).modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                module.dilation = (dilation, dilation)
                module.padding = tuple(side // 2 * dilation for side in module.kernel_size)
    return resnet


def of_torchvision(*dilate):
    layers = [1, 1, 2, 3]
    return ResNet(Bottleneck, layers, replace_stride_with_dilation=dilate or None)


def of_timm(name, output_stride):
    return timm.create_model(name, output_stride=output_stride, layers=(1, 1, 2, 3))


# The network, and the stride of the maps that c5 receives and returns.
DILATED = {
    "timm 16": (lambda: of_timm("resnet50", 16), 16),
    "timm 8": (lambda: of_timm("resnet50", 8), 8),
    "timm d 16": (lambda: of_timm("resnet50d", 16), 16),
    "torchvision 16": (lambda: of_torchvision(False, False, True), 16),
    "torchvision 8": (lambda: of_torchvision(False, True, True), 8),
    "smp 16": (lambda: dilated_like_smp(of_torchvision(), {"layer4": 2}), 16),
    "smp 8": (lambda: dilated_like_smp(of_torchvision(), {"layer3": 2, "layer4": 4}), 8),
}


def geometry(module):
    return {
        name: (layer.stride, layer.dilation, layer.padding)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and not name.endswith("conv2.qkv")
    }


def stage4(resnet, x):
    """The output of layer4."""
    children = dict(resnet.eval().named_children())
    with torch.inference_mode():
        for name in [*children][: [*children].index("layer4") + 1]:
            x = children[name](x)
    return x


@pytest.mark.parametrize("source", DILATED)
@pytest.mark.parametrize("blocks", [None, (0, -1)])
def test_dilation_is_kept(source, blocks):
    make, reduction = DILATED[source]
    resnet = make()
    before = copy.deepcopy(resnet)
    model = botvision.to_botnet(resnet, (97, 130), blocks=blocks)
    replaced = {f"layer4.{k % 3}.conv2" for k in (range(3) if blocks is None else blocks)}
    assert geometry(model) == {n: g for n, g in geometry(before).items() if n not in replaced}
    x = torch.randn(1, 3, 97, 130)
    assert stage4(model, x).shape == stage4(before, x).shape
    cells = (-(-97 // reduction), -(-130 // reduction))
    assert tables(model) == dict.fromkeys(replaced, cells)
    info = getattr(model, "feature_info", None)
    assert info is None or info[-1]["reduction"] == reduction


@pytest.mark.parametrize("source", DILATED)
def test_undoing_a_dilation_is_refused(source):
    resnet = DILATED[source][0]()
    before = geometry(resnet)
    with pytest.raises(ValueError, match=r"the last stage has stride 1, .* stride 2 would undo"):
        botvision.to_botnet(resnet, 64, stride=2)
    assert geometry(resnet) == before
    assert tables(resnet) == {}


def test_deeplab_runs_with_attention():
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    before = geometry(model)
    botvision.to_botnet(model.backbone, 65)
    after = geometry(model)
    replaced = {f"backbone.layer4.{k}.conv2" for k in range(3)}
    assert after == {name: g for name, g in before.items() if name not in replaced}
    x = torch.randn(1, 3, 65, 65)
    assert set(tables(model.backbone).values()) == {(9, 9)}
    with torch.inference_mode():
        found = model.eval()(x)
    assert found["out"].shape == (1, 5, 65, 65)
    assert found["aux"].shape == (1, 5, 65, 65)


@pytest.mark.parametrize("source", DILATED)
def test_an_inserted_block_has_a_table_of_its_map(source):
    make, reduction = DILATED[source]
    model = insert_bot(make(), ("c4", "c5"), (97, 130))
    at_c4 = 8 if source.endswith("8") else 16
    assert tables(model) == {
        "layer3.bot.conv2": (-(-97 // at_c4), -(-130 // at_c4)),
        "layer4.bot.conv2": (-(-97 // reduction), -(-130 // reduction)),
    }


def test_the_stem_counts():
    """A stem for small images has no stride."""
    resnet = of_torchvision()
    resnet.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    resnet.maxpool = nn.Identity()
    model = botvision.to_botnet(resnet, 32)
    x = torch.randn(1, 3, 32, 32)
    assert (
        tables(model)
        == seen(model, x)
        == {
            "layer4.0.conv2": (8, 8),
            "layer4.1.conv2": (4, 4),
            "layer4.2.conv2": (4, 4),
        }
    )


@pytest.mark.parametrize("options", [{}, {"stem_type": "deep"}, {"replace_stem_pool": True}])
@pytest.mark.parametrize("blur", [None, timm.layers.BlurPool2d])
def test_stems_of_timm(options, blur):
    model = timm.create_model("resnet50", aa_layer=blur, **options, **SHALLOW)
    model = botvision.to_botnet(model, (97, 130))
    x = torch.randn(1, 3, 97, 130)
    assert tables(model) == seen(model, x) == {"layer4.0.conv2": (7, 9), "layer4.1.conv2": (4, 5)}


def test_deeplab_v3_plus_of_smp():
    smp = pytest.importorskip(
        "segmentation_models_pytorch",
        reason="segmentation_models_pytorch is not installed; pip install it to run this test",
    )
    model = smp.DeepLabV3Plus("tu-botnet50", encoder_weights=None, classes=3).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 3, 224, 224)
