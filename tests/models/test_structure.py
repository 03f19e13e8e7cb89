"""What optimizers, sharding and weight loading ask of a network."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import Bottleneck
from timm.optim import create_optimizer_v2
from torch import nn

import botvision
from botvision.attention import RelativeAttention2d
from botvision.models import (
    has_position_tables,
    insert_bot,
    new_parts,
    no_weight_decay,
    stage_blocks,
)

TINY = {"layers": (1, 1, 2, 2), "channels": (16, 16, 32, 32)}
TABLES = ("pos_embed.height_rel", "pos_embed.width_rel")
NEW = {
    "botnet18": ["layer4"],
    "botnet34": ["layer4"],
    "botnet50": [],
    "resnet50_bot_c4": ["layer3.bot"],
    "resnet50_bot_c4_c5": ["layer3.bot", "layer4.bot"],
    "resnet50_nl_c4": ["layer3.nl"],
    "senet50": [],
    "resnet50": [],
}


class Detector(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = nn.Sequential(nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", NEW)
def test_new_parts(name, features_only):
    with torch.device("meta"):
        model = botvision.create_model(name, **TINY, features_only=features_only)
    assert new_parts(model) == NEW[name]
    assert new_parts(copy.deepcopy(model)) == NEW[name]
    assert new_parts(Detector(model)) == [f"body.{part}" for part in NEW[name]]


def test_a_new_stage_stays_new_with_an_inserted_block():
    with torch.device("meta"):
        model = insert_bot(botvision.create_model("botnet18"), ("c5",))
    assert new_parts(model) == ["layer4", "layer4.bot"]
    assert list(dict(model.layer4.named_children())) == ["0", "bot", "1"]


@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_layers_declare_their_position_tables(position):
    layer = RelativeAttention2d(16, 4, position=position)
    tables = {name for name, _ in layer.named_parameters() if name.startswith("pos_embed.")}
    assert layer.no_weight_decay() == tables
    assert len(tables) == (0 if position == "none" else 2)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("botnet50", ["layer4.0.conv2", "layer4.1.conv2"]),
        ("botnet18", ["layer4.0.conv2", "layer4.1.conv2"]),
        ("resnet50_bot_c4_c5", ["layer3.bot.conv2", "layer4.bot.conv2"]),
        ("resnet50_nl_c4", []),
        ("resnet50", []),
    ],
)
def test_position_tables_get_no_weight_decay(name, layers):
    model = botvision.create_model(name, **{**TINY, "layers": (2, 2, 2, 2)})
    tables = {f"{layer}.{table}" for layer in layers for table in TABLES}
    assert no_weight_decay(model) == tables
    assert no_weight_decay(Detector(model)) == {f"body.{table}" for table in tables}
    groups = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.5).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        kernel = parameter.ndim > 1 and name not in tables
        assert decay[id(parameter)] == (0.5 if kernel else 0), name
    features = botvision.create_model("botnet50", **TINY, features_only=True)
    assert len(no_weight_decay(features)) == 4


def test_models_of_timm_declare_their_own():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    assert no_weight_decay(model) == model.no_weight_decay() > {"pos_embed"}
    assert "body.pos_embed" in no_weight_decay(Detector(model))


@pytest.mark.parametrize(
    "make",
    [
        lambda: botvision.create_model("botnet50", **TINY),
        lambda: botvision.create_model("botnet50", **TINY, features_only=True),
        lambda: botvision.create_model("botnet_t3", **TINY),
        lambda: timm.create_model("resnet50d", **TINY),
        lambda: timm.create_model("resnet50", **TINY, features_only=True),
        lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 2, 2]),
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 2, 2]),
    ],
)
def test_blocks_of_a_resnet(make):
    with torch.device("meta"):
        model = make()
    blocks = [f"layer{stage}.{index}" for stage, index in [(1, 0), (2, 0), *FOUR]]
    assert names(model) == blocks
    assert names(Detector(model)) == [f"body.{name}" for name in blocks]
    assert stage_blocks(model.layer1) == list(model.layer1)


FOUR = [(3, 0), (3, 1), (4, 0), (4, 1)]


def names(model):
    """Names of the blocks; each is a module of the model."""
    by_id = {id(module): name for name, module in model.named_modules()}
    return [by_id[id(block)] for block in stage_blocks(model)]


def test_inserted_blocks_are_blocks():
    with torch.device("meta"):
        model = botvision.create_model("resnet50_bot_c4", **TINY)
        other = botvision.create_model("resnet50_nl_c4", **TINY)
    assert model.layer3.bot in stage_blocks(model)
    assert other.layer3.nl in stage_blocks(other)


@pytest.mark.parametrize("features_only", [False, True])
def test_blocks_of_nested_stages_are_the_innermost(features_only):
    with torch.device("meta"):
        model = timm.create_model("convnext_atto", features_only=features_only)
    blocks = stage_blocks(model)
    assert {type(block).__name__ for block in blocks} == {"ConvNeXtBlock"}
    assert len(blocks) == 2 + 2 + 6 + 2


def test_what_has_no_stages_has_no_blocks():
    with torch.device("meta"):
        assert stage_blocks(Bottleneck(64, 16)) == []
        assert stage_blocks(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))) == []


def test_which_models_have_position_tables():
    with_tables = [name for name in botvision.list_models() if has_position_tables(name)]
    assert with_tables == [name for name in botvision.list_models() if "bot" in name]
    assert not has_position_tables("resnet50.a1_in1k")
