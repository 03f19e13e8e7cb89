"""Accuracy and calibration against their formulas in NumPy."""

import csv

import numpy as np
import pytest
import torch

from botvision.evaluation.classification import ClassificationEvaluator, write_confusion


def evaluate(logits, labels, classes, cuts=(7, 11)):
    evaluator = ClassificationEvaluator(classes)
    evaluator.reset()
    for part in np.split(np.arange(len(labels)), cuts):
        if len(part):
            evaluator.update(torch.tensor(logits[part]), (None, torch.tensor(labels[part])))
    assert evaluator.compute() is evaluator.metrics
    return evaluator


def draw(images, classes, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    logits = random.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1
    return logits, labels


def expected_calibration_error(logits, labels, bins=15):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    error = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error


@pytest.mark.parametrize("classes", [3, 12])
def test_metrics_are_their_formulas(classes):
    names = [f"class {k}" for k in range(classes)]
    logits, labels = draw(53, classes)
    got = evaluate(logits, labels, names)
    order = np.argsort(-logits, axis=1)
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert got.metrics["top1"] == pytest.approx((order[:, 0] == labels).mean())
    assert got.metrics["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    loss = -log_shares[np.arange(53), labels].mean()
    assert got.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    want = expected_calibration_error(logits, labels)
    assert got.metrics["calibration_error"] == pytest.approx(want, abs=1e-5)
    for k, name in enumerate(names):
        own = labels == k
        values = got.metrics["per_class"][name]
        assert values["images"] == own.sum()
        assert values["accuracy"] == pytest.approx((order[own, 0] == k).mean())
    for (true, predicted), count in np.ndenumerate(got.confusion.numpy()):
        assert count == ((labels == true) & (order[:, 0] == predicted)).sum()
    assert got.metrics["images_per_second"] > 0
    assert got.score == got.metrics["top1"]


def test_a_second_run_forgets_the_first():
    evaluation = evaluate(*draw(20, 4), list("abcd"))
    logits, labels = draw(9, 4, seed=1)
    evaluation.reset()
    evaluation.update(torch.tensor(logits), (None, torch.tensor(labels)))
    evaluation.compute()
    again = evaluate(logits, labels, list("abcd"), cuts=())
    for one in (evaluation, again):
        del one.metrics["images_per_second"]
    assert evaluation.metrics == again.metrics


def test_the_confusion_matrix_is_a_table(tmp_path):
    path = write_confusion(tmp_path, ["a", "b, c"], torch.tensor([[3, 1], [0, 2]]))
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["true / predicted", "a", "b, c"], ["a", "3", "1"], ["b, c", "0", "2"]]
