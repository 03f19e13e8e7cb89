"""Blocks inserted into a ResNet (paper, Table 7)."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import NonLocalAttn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import botvision
from botvision.attention import RelativeAttention2d
from botvision.models import insert_bot, insert_non_local, new_parts
from botvision.models.ablations import NonLocal2d
from botvision.models.summary import summarize

RESNETS = {
    "timm": lambda: timm.create_model("resnet50"),
    "torchvision": lambda: torchvision.models.resnet50(),
    "timm-d": lambda: timm.create_model("resnet50d"),
    "timm-dilated": lambda: timm.create_model("resnet50", output_stride=16),
}
INSERTIONS = {
    "bot-c4": (insert_bot, {}, {"layer3": "bot"}),
    "bot-c4-c5": (insert_bot, {"stages": ("c4", "c5")}, {"layer3": "bot", "layer4": "bot"}),
    "nl-c4": (insert_non_local, {}, {"layer3": "nl"}),
    "nl-c4-value": (insert_non_local, {"value": True}, {"layer3": "nl"}),
}


def as_if_trained(model):
    """Batch norms with scales and statistics of all sizes, zero scales replaced."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 0.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize("source", RESNETS)
@pytest.mark.parametrize("insertion", INSERTIONS)
def test_inserted_between_the_last_two_and_changes_nothing_at_first(source, insertion):
    torch.manual_seed(0)
    insert, options, places = INSERTIONS[insertion]
    # Channels-last, as attention hands on: the layers behind it then round alike.
    resnet = as_if_trained(RESNETS[source]()).eval().to(memory_format=torch.channels_last)
    before = copy.deepcopy(resnet.state_dict())
    x = torch.randn(2, 3, 70, 99).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        want = resnet(x)
        model = insert(resnet, **options)
        assert torch.equal(model(x), want)
    for stage, count in (("layer3", 6), ("layer4", 3)):
        names = [str(index) for index in range(count)]
        if stage in places:
            names.insert(-1, places[stage])
        assert [name for name, _ in getattr(model, stage).named_children()] == names
    after = model.state_dict()
    prefixes = tuple(f"{stage}.{name}." for stage, name in places.items())
    assert {n for n in after if not n.startswith(prefixes)} == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert [f"{part}." for part in new_parts(model)] == list(prefixes)
    assert not any(module.training for module in model.modules())
    attention = [n for n, m in model.named_modules() if isinstance(m, RelativeAttention2d)]
    assert attention == [f"{s}.bot.conv2" for s, name in places.items() if name == "bot"]


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_an_inserted_bot_block_by_hand(source):
    """1x1 to 256, MHSA, 1x1 to 1024, each with its batch norm, plus the input, then ReLU."""
    torch.manual_seed(0)
    block = as_if_trained(insert_bot(RESNETS[source](), image_size=(96, 80))).eval().layer3.bot
    x = torch.randn(2, 1024, 6, 5)
    y = block.bn1(nn.functional.conv2d(x, block.conv1.weight)).relu()
    attention = RelativeAttention2d(256, (6, 5), impl="reference")
    attention.load_state_dict(block.conv2.state_dict())
    y = block.bn2(attention(y)).relu()
    y = block.bn3(nn.functional.conv2d(y, block.conv3.weight))
    torch.testing.assert_close(block(x), (x + y).relu())


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_an_inserted_bot_block_is_drawn_anew(source):
    torch.manual_seed(0)
    model = insert_bot(as_if_trained(RESNETS[source]()), ("c5",))
    block, last = model.layer4.bot, model.layer4[-1]
    assert block is model.layer4[-2]
    for conv in ("conv1", "conv3"):
        weight = getattr(block, conv).weight
        assert not torch.equal(weight, getattr(last, conv).weight)
        assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.01)
    assert block.conv2.qkv.weight.std().item() == pytest.approx(0.01, rel=0.01)
    for norm, scale in ((block.bn1, 1), (block.bn2, 1), (block.bn3, 0)):
        assert (norm.weight == scale).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()


def bot_parameters(channels, side):
    """Two 1x1 convolutions, q, k and v, two tables of a head's channels, three batch norms."""
    width = channels // 4
    tables = 2 * (2 * side - 1) * width // 4
    return 2 * channels * width + 3 * width * width + tables + 2 * (width + width + channels)


INSERTED_PARAMETERS = {
    "resnet50_bot_c4": bot_parameters(1024, 14),
    "resnet50_bot_c4_c5": bot_parameters(1024, 14) + bot_parameters(2048, 7),
    "resnet50_nl_c4": 2 * (1024 * 512 + 512) + 1024 * 1024 + 1024 + 2 * 1024,
    "resnet50_nl_c4_value": 3 * (1024 * 512 + 512) + 512 * 1024 + 1024 + 2 * 1024,
}


@pytest.mark.parametrize("name", INSERTED_PARAMETERS)
def test_parameters_are_the_resnets_and_the_blocks(name):
    with torch.device("meta"):
        ours = sum(p.numel() for p in botvision.create_model(name).parameters())
        theirs = sum(p.numel() for p in timm.create_model("resnet50").parameters())
    assert ours == theirs + INSERTED_PARAMETERS[name]


def bot_products(channels, cells):
    """Per map of cells x cells: 1x1 convolutions, q, k and v, two products, two position terms."""
    width, tokens = channels // 4, cells**2
    convolutions = 2 * channels * width + 3 * width * width
    return tokens * convolutions + 2 * tokens**2 * width + 2 * tokens * cells * width


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("resnet50_bot_c4", bot_products(1024, 16)),
        ("resnet50_bot_c4_c5", bot_products(1024, 16) + bot_products(2048, 8)),
        ("resnet50_nl_c4", 256 * (2 * 512 * 1024 + 1024**2) + 256**2 * (512 + 1024)),
        ("resnet50_nl_c4_value", 256 * 4 * 512 * 1024 + 256**2 * 2 * 512),
    ],
)
def test_multiply_adds_are_the_resnets_and_the_blocks(name, products):
    resnet = summarize("resnet50", 256).multiply_adds
    assert summarize(name, 256).multiply_adds == resnet + products


@pytest.mark.parametrize(
    ("image_size", "c4", "c5"), [(1024, (64, 64), (32, 32)), ((800, 1333), (50, 84), (25, 42))]
)
def test_position_tables_are_made_for_the_maps(image_size, c4, c5):
    with torch.device("meta"):
        model = botvision.create_model("resnet50_bot_c4_c5", image_size=image_size)
    for block, (height, width) in ((model.layer3.bot, c4), (model.layer4.bot, c5)):
        tables = block.conv2.pos_embed
        assert tables.height_rel.shape == (2 * height - 1, block.conv1.out_channels // 4)
        assert tables.width_rel.shape[0] == 2 * width - 1


def test_position_tables_follow_a_dilated_resnet():
    model = insert_bot(RESNETS["timm-dilated"](), ("c5",), 224)
    assert model.layer4.bot.conv2.pos_embed.height_rel.shape[0] == 2 * 14 - 1


def test_options_reach_every_inserted_layer():
    model = botvision.create_model(
        "resnet50_bot_c4_c5",
        layers=(1, 1, 2, 2),
        num_heads=8,
        position="absolute",
        content=False,
        scale_position=False,
        table_resize="slice",
        impl="chunked",
    )
    for layer in (model.layer3.bot.conv2, model.layer4.bot.conv2):
        assert (layer.num_heads, layer.content, layer.scale_position) == (8, False, False)
        assert (layer.impl, layer.pos_embed.table_resize) == ("chunked", "slice")


@pytest.mark.parametrize("name", INSERTED_PARAMETERS)
def test_inserted_blocks_learn(name):
    torch.manual_seed(0)
    model = botvision.create_model(name, num_classes=5, layers=(1, 1, 2, 2)).train()
    nn.init.ones_((model.layer3.nl.norm if "nl" in name else model.layer3.bot.bn3).weight)
    model(torch.randn(2, 3, 64, 97)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.layer3[1].parameters() if p.ndim > 1)


# 12 x 9 cells keep their logits in training, 30 x 30 never do: both ways through the attention.
@pytest.mark.parametrize("cells", [(12, 9), (30, 30)])
@pytest.mark.parametrize("value", [True, False])
def test_non_local_block_in_float64(cells, value):
    torch.manual_seed(0)
    block = as_if_trained(NonLocal2d(32, value=value).double())
    for layer in (block.t, block.p):
        nn.init.normal_(layer.weight, std=0.2)
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 32, *cells, dtype=torch.float64)
    if value:
        timms = NonLocalAttn(32, use_scale=False, rd_ratio=1 / 2).double()
        timms.load_state_dict(block.state_dict())
        want = timms(x)
    else:
        q, k = ((x.flatten(2).mT @ c.weight.flatten(1).T + c.bias) for c in (block.t, block.p))
        taken = (q @ k.mT).softmax(dim=-1) @ x.flatten(2).mT
        block_norm = copy.deepcopy(block.norm)
        want = x + block_norm(block.z(taken.mT.reshape(x.shape)))
    torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("cells", [(8, 8), (30, 30)])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("value", [True, False])
def test_non_local_block_under_autocast(cells, trained, value):
    """Large logits of queries and keys in bfloat16 keep their fraction."""
    torch.manual_seed(0)
    block = as_if_trained(NonLocal2d(64, value=value))
    nn.init.normal_(block.t.weight, std=0.2)
    nn.init.normal_(block.p.weight, std=0.2)
    seen = {}
    for name in ("t", "p", "g"):
        block.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o.detach().bfloat16().double()})
        )
    block.z.register_forward_pre_hook(lambda m, i: seen.update(z=i[0].detach().double()))
    x = torch.randn(2, 64, *cells).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(trained):
        out = block(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    q, k, v = (seen[name].flatten(2).mT for name in ("t", "p", "g"))
    logits = q @ k.mT
    assert logits.abs().max() > 32
    want = (logits.softmax(dim=-1) @ v).mT.reshape(seen["z"].shape)
    assert (seen["z"] - want).abs().max() < 0.01 * want.abs().max()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_non_local_block_keeps_no_logits(memory_format):
    block = NonLocal2d(16, value=True)
    x = torch.randn(1, 16, 64, 64).contiguous(memory_format=memory_format)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if it cannot
        block(x)


def test_non_local_block_starts_as_the_identity_with_logits_of_moderate_size():
    torch.manual_seed(0)
    block = NonLocal2d(1024)
    x = torch.randn(1, 1024, 8, 8)
    assert torch.equal(block(x), x)
    logits = block.t(x).flatten(2).mT @ block.p(x).flatten(2)
    assert 1 < logits.std() < 5


@pytest.mark.parametrize(
    ("insert", "match"),
    [
        (lambda: insert_bot(timm.create_model("resnet18")), "bottleneck blocks in c4"),
        (lambda: insert_non_local(timm.create_model("resnet18")), "bottleneck blocks in c4"),
        (lambda: insert_bot(RESNETS["timm"](), ("c3",)), "into c4 and c5, not 'c3'"),
        (lambda: insert_bot(insert_bot(RESNETS["timm"]())), "c4 has a block 'bot' already"),
        (
            lambda: insert_bot(timm.create_model("resnet50", layers=(1, 1, 2, 1)), ("c5",)),
            "no last two bottleneck blocks in c5",
        ),
    ],
)
def test_refusals(insert, match):
    with torch.device("meta"), pytest.raises(ValueError, match=match):
        insert()
