"""Training and evaluation on real data."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from botvision.cli.main import main


@pytest.mark.slow
def test_coco_trains_and_its_metrics_are_pycocotools(coco_mini, tmp_path):
    out = tmp_path / "run"
    settings = ["--model", "botnet50", "--image-size", "256", "--max-steps", "4"]
    main(["train", str(coco_mini), *settings, "--out", str(out)])
    main(["eval", str(out), str(coco_mini), "--out", str(tmp_path / "eval")])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    truth = COCO(str(coco_mini / "annotations" / "instances_val2017.json"))
    found = truth.loadRes(str(tmp_path / "eval" / "predictions" / "results.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        ours = list(metrics[kind].values())
        np.testing.assert_allclose(ours, evaluation.stats, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_quick_recipe_learns_nuclei(nuclei, tmp_path):
    """A quarter of the recipe's steps, so AP is far below its result and far above zero."""
    out = tmp_path / "run"
    main(["train", str(nuclei), "--recipe", "quick", "--max-steps", "150", "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["bbox"]["AP50"] > 0.2
    assert metrics["segm"]["AP50"] > 0.2


@pytest.mark.slow
def test_the_quick_recipe_learns_cifar10(cifar10, tmp_path):
    """A twelfth of the recipe's steps, so accuracy is far below its result and far above 10 %."""
    out = tmp_path / "run"
    main(["train", str(cifar10), "--recipe", "quick", "--max-steps", "230", "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["top1"] > 0.35
    assert sum(row["images"] for row in metrics["per_class"].values()) == 10_000
