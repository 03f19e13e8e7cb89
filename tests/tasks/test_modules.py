"""Loss, optimizer, schedule and saved models."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from botvision.config import DetectionConfig, DetectorConfig
from botvision.data.categories import Categories
from botvision.errors import UserError
from botvision.tasks.checkpoint import DetectorSpec, load_model, save_model
from botvision.tasks.detection import DetectionModule
from botvision.training.schedule import learning_rate_factor


def test_the_step_schedule_is_the_code_bases():
    """22 500 steps: 500 of warm-up from 0.0067 to 0.08, divided by 10 at 15 000 and 20 000."""
    config = DetectionConfig("data", batch_size=64)
    rates = [config.peak_lr * learning_rate_factor(s, 22_500, config) for s in range(22_500)]
    assert rates[0] == pytest.approx(0.0067)
    assert rates[250] == pytest.approx((0.0067 + 0.08) / 2)
    np.testing.assert_allclose(rates[500:15_000], 0.08)
    np.testing.assert_allclose(rates[15_000:20_000], 0.008)
    np.testing.assert_allclose(rates[20_000:], 0.0008)


def test_the_cosine_schedule():
    config = DetectionConfig("data", schedule="cosine", warmup_steps=10, warmup_factor=0.1)
    factors = [learning_rate_factor(s, 110, config) for s in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[109] == pytest.approx((1 + math.cos(math.pi * 99 / 100)) / 2)


def test_the_learning_rate_scales_with_the_batch_unless_it_is_given():
    assert DetectionConfig("data", batch_size=16).peak_lr == pytest.approx(0.02)
    assert DetectionConfig("data", batch_size=16, lr=0.3).peak_lr == 0.3


class Broken(nn.Module):
    """A detector whose loss is NaN."""

    def forward(self, images, targets):
        return {"loss_mask": torch.tensor(float("nan")), "loss_box": torch.tensor(1.0)}


def test_a_non_finite_loss_stops_and_names_the_images():
    names = ("a.png", "c.png", "b.png")
    data = SimpleNamespace(image_name=names.__getitem__)
    module = DetectionModule(Broken(), DetectionConfig("data"), 10, data)
    targets = [{"index": torch.tensor(0)}, {"index": torch.tensor(2)}]
    with pytest.raises(UserError, match=r"not finite at step 0 .*loss_mask nan.* a\.png, b\.png"):
        module.training_step(([], targets), 0)


CARD = DetectorSpec(
    model="botnet50",
    task="segmentation",
    image_size=64,
    norm="plain",
    model_args={"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
    detector=DetectorConfig(fpn_channels=16, box_head_dim=16, mask_convs=1, mask_channels=16),
    categories=Categories((0, 7), ("cat", "dog")),
)


def test_weight_decay_leaves_norms_biases_and_position_tables_alone():
    detector = CARD.build()
    module = DetectionModule(detector, DetectionConfig("data", weight_decay=0.5), 10, None)
    optimizer = module.configure_optimizers()["optimizer"]
    names = {id(p): n for n, p in detector.named_parameters()}
    groups = {
        g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups
    }
    assert set(groups) == {0.0, 0.5}
    assert set.union(*groups.values()) == set(names.values())
    kernels = {
        f"{name}.weight"
        for name, m in detector.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
    }
    assert groups[0.5] == kernels


def test_a_saved_model_comes_back_whole(tmp_path):
    detector = CARD.build().eval()
    save_model(detector, CARD, tmp_path / "best.safetensors")
    loaded, card = load_model(tmp_path)
    assert card == CARD
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    for name, value in detector([image])[0].items():
        assert torch.equal(loaded([image])[0][name], value)


def test_what_is_no_saved_model(tmp_path):
    with pytest.raises(UserError, match=r"best.safetensors: no such weights file"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: not a botvision model"):
        load_model(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(UserError, match=r"text.safetensors: not a readable safetensors file"):
        load_model(tmp_path / "text.safetensors")


def test_frozen_stages_keep_weights_and_statistics(tmp_path):
    config = DetectionConfig("data", model_args=dict(CARD.model_args), image_size=64)
    for stages, last in ((0, None), (1, "bn1"), (3, "layer2"), (5, "layer4")):
        torch.manual_seed(0)
        detector = CARD.build().train()
        frozen = detector.backbone.first_stages(stages)
        module = DetectionModule(detector, config, 10, None, frozen)
        names = [n for n, _ in detector.backbone.body.named_children()]
        if last is not None:
            module.on_train_batch_start(([], []), 0)
            stop = names.index("layer1") if last == "bn1" else names.index(last) + 1
            names, trained = names[:stop], names[stop:]
            assert all(detector.backbone.body[n].training for n in trained)
            assert not any(detector.backbone.body[n].training for n in names)
            assert last in names
        else:
            names = []
        for name, parameter in detector.named_parameters():
            inside = name.startswith(tuple(f"backbone.body.{n}." for n in names))
            assert parameter.requires_grad != inside, name
        optimized = module.configure_optimizers()["optimizer"].param_groups
        ids = {id(p) for group in optimized for p in group["params"]}
        assert ids == {id(p) for p in detector.parameters() if p.requires_grad}


@pytest.mark.parametrize("count", [-1, 6])
def test_there_are_five_stages_to_freeze(count):
    with pytest.raises(UserError, match=rf"^freeze_stages {count}: give 0 to 5"):
        CARD.build().backbone.first_stages(count)
