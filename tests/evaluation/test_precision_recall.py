"""The curves' file against arrays made by hand."""

import csv

import numpy as np

from botvision.evaluation.precision_recall import PrecisionRecall, write_precision_recall


def step(precision, recall):
    """(101,): the precision up to a recall, 0 from there on."""
    return np.where(np.arange(101) <= round(100 * recall), precision, 0.0)


def curves():
    """Of "a" and "c, d"; "b" has no objects, and nothing of "a" is found above IoU 0.50."""
    precision = np.full((10, 101, 3), -1.0)
    precision[:, :, 0] = 0
    precision[0, :, 0] = step(0.8, 0.3)
    precision[:, :, 2] = [step(0.6, 0.9 - 0.1 * t) for t in range(10)]
    scores = np.full((10, 101, 3), -1.0)
    scores[:, :, [0, 2]] = np.where(precision[:, :, [0, 2]] > 0, 0.25, 0)
    return PrecisionRecall.of(["a", "b", "c, d"], precision, scores)


def test_a_row_for_each_point_of_each_curve(tmp_path):
    path = write_precision_recall(tmp_path / "new", {"bbox": curves(), "segm": curves()})
    assert path == tmp_path / "new" / "precision_recall.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["kind", "class", "iou", "recall", "precision", "score"]
    found = {}
    for row in rows:
        found.setdefault((row["kind"], row["class"], row["iou"]), []).append(row)
    ious = ("0.50", "0.75", "0.50:0.95")
    names = ("(mean)", "a", "c, d")
    assert set(found) == {(k, n, i) for k in ("bbox", "segm") for n in names for i in ious}
    overall = np.mean([step(0.6, 0.9 - 0.1 * t) for t in range(10)], axis=0)
    expected = {
        ("a", "0.50"): step(0.8, 0.3),
        ("a", "0.75"): step(0, 0),
        ("a", "0.50:0.95"): step(0.08, 0.3),
        ("c, d", "0.50"): step(0.6, 0.9),
        ("c, d", "0.75"): step(0.6, 0.4),
        ("c, d", "0.50:0.95"): overall,
        ("(mean)", "0.50"): (step(0.8, 0.3) + step(0.6, 0.9)) / 2,
        ("(mean)", "0.75"): step(0.3, 0.4),
        ("(mean)", "0.50:0.95"): (step(0.08, 0.3) + overall) / 2,
    }
    for (_, name, iou), own in found.items():
        assert [row["recall"] for row in own] == [f"{r / 100:.2f}" for r in range(101)]
        got = [float(row["precision"]) for row in own]
        np.testing.assert_allclose(got, expected[name, iou], rtol=0, atol=1e-6)
        of_one = name != "(mean)" and ":" not in iou
        for row, value in zip(own, got, strict=True):
            assert row["score"] == ("0.250000" if of_one and value > 0 else "")


def test_without_objects_there_is_the_header_alone(tmp_path):
    nothing = np.full((10, 101, 2), -1.0)
    curve = PrecisionRecall.of(["a", "b"], nothing, nothing)
    path = write_precision_recall(tmp_path, {"bbox": curve})
    assert path.read_text().split() == ["kind,class,iou,recall,precision,score"]
