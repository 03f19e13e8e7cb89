"""The classification family against what the paper prints of it."""

import pytest
import torch

import botvision
from botvision.models.published import PUBLISHED
from botvision.models.summary import summarize

# The first version of the paper gives squeeze and excitation to the ResNet's blocks alone; what
# the models then have, in millions, as counted from the definitions.
WITHOUT_SE_IN_BOT = {
    "botnet_t3": 30.5,
    "botnet_t4": 51.7,
    "botnet_t5": 69.1,
    "botnet_t6": 47.9,
    "botnet_t7": 69.1,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published(name):
    paper = PUBLISHED[name]
    ours = summarize(name)
    assert ours.image_size == paper.image_size
    assert ours.parameters / 1e6 == pytest.approx(paper.parameters, rel=0.01)
    # Table 9's multiply-adds do not follow from the authors' own counter, as the notes say.
    if paper.multiply_adds is not None and name not in ("botnet50", "botnet50_s1"):
        assert ours.multiply_adds / 1e9 == pytest.approx(paper.multiply_adds, rel=0.01)


@pytest.mark.parametrize(("name", "millions"), WITHOUT_SE_IN_BOT.items())
def test_squeeze_and_excitation_can_be_left_to_the_resnets_blocks(name, millions):
    with torch.device("meta"):
        model = botvision.create_model(name, se_in_bot=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)
    assert all(block.se is None for block in model.layer4)
    assert all(block.se is not None for block in model.layer3)


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if name[:8] in ("botnet_t", "senet50")]
)
def test_the_scaled_family_has_its_activations_and_strides(name):
    with torch.device("meta"):
        model = botvision.create_model(name, num_classes=7)
        maps = model.forward_features(torch.empty(1, 3, 64, 64))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)
    assert maps.shape[-1] == (2 if name == "senet50" else 4)
    relus = {n for n, module in model.named_modules() if isinstance(module, torch.nn.ReLU)}
    assert all(".se." in name for name in relus)


def test_stochastic_depth_and_dropout_reach_the_model():
    with torch.device("meta"):
        model = botvision.create_model("botnet_t3", drop_path_rate=0.2, drop_rate=0.3)
    rates = [b.drop_path.drop_prob for b in (*model.layer3, *model.layer4) if b.drop_path]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2)
    assert model.drop_rate == 0.3
