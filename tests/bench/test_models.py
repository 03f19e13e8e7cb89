"""The benchmark of whole models, with models defined here."""

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from botvision.attention import implementations
from botvision.bench.config import ModelBenchConfig
from botvision.bench.models import bench_models, measure_models
from botvision.errors import UserError
from botvision.models import create_model
from botvision.models.flops import count_multiply_adds, count_parameters


def small(width):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def count(name, image_size, **kwargs):
    with torch.device("meta"):
        model = create_model(name, image_size=image_size, **kwargs)
    return count_parameters(model), count_multiply_adds(model, image_size)


def test_multiply_adds():
    resnet = count("resnet50", 224)
    meta = ResNet50_Weights.IMAGENET1K_V1.meta
    assert resnet[0] == meta["num_params"]
    assert resnet[1] / 1e9 == pytest.approx(meta["_ops"], abs=0.001)
    botnet = count("botnet50", 224)
    assert botnet[0] == 20_852_008
    # Three 3x3 convolutions of 512 channels, all at 7x7, became attention at 14x14, 7x7 and 7x7.
    convolutions = 3 * 9 * 512**2 * 7**2
    attention = sum(
        3 * 512**2 * cells + 2 * 512 * cells**2 + 512 * cells * 2 * side
        for side in (14, 7, 7)
        for cells in [side**2]
    )
    assert botnet[1] == pytest.approx(resnet[1] - convolutions + attention, rel=1e-3)
    assert botnet[1] / 1e9 == pytest.approx(4.02, abs=0.005)


def test_multiply_adds_do_not_depend_on_the_implementation():
    counts = {count("botnet50", 64, impl=impl) for impl in ("auto", *implementations("cpu"))}
    assert len(counts) == 1


def test_rows():
    models = {"narrow": (lambda: small(4), 16), "wide": (lambda: small(64), 32)}
    modes = {"precision": ["32", "bf16"], "mode": ["forward", "train"]}
    config = ModelBenchConfig(batch_size=2, seconds=0.0, device="cpu", **modes)
    groups = list(measure_models(models, config))
    assert [(g[0].mode, g[0].precision) for g in groups] == [
        *(("forward", "32"), ("forward", "bf16")),
        *(("train", "32"), ("train", "bf16")),
    ]
    for narrow, wide in groups:
        assert (narrow.model, narrow.image_size, wide.image_size) == ("narrow", 16, 32)
        assert narrow.multiply_adds == 4 * 27 * 16 * 16 + 40
        assert wide.parameters == 64 * 28 + 650
        assert narrow.ratio == 1 and wide.ratio == wide.median_ms / narrow.median_ms
        assert wide.images_per_second == pytest.approx(2000 / wide.median_ms)
        assert wide.peak_mib > narrow.peak_mib > 0


def test_training_runs_in_training_mode():
    modes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = small(4)

        def forward(self, x):
            modes.append(self.training)
            return self.layer(x)

    config = ModelBenchConfig(mode=["forward", "train"], seconds=0.0, device="cpu")
    list(measure_models({"spy": (Spy, 8)}, config))
    assert modes[:1] == [False] and modes[-1] is True
    assert sum(modes) == len(modes) // 2


def test_a_model_that_does_not_take_the_images_is_named():
    with pytest.raises(UserError, match="linear: does not run on images of 8 px"):
        list(
            measure_models({"linear": (lambda: nn.Linear(7, 7), 8)}, ModelBenchConfig(device="cpu"))
        )


def test_quiet_prints_nothing(capsys):
    rows = bench_models(ModelBenchConfig(["resnet18@32"], seconds=0.001, device="cpu"), quiet=True)
    assert [row.model for row in rows] == ["resnet18@32"]
    assert capsys.readouterr() == ("", "")
