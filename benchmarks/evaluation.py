"""Compare the COCO evaluation with pycocotools: time and metrics on generated detections.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation-cpu.json

Both evaluate boxes and masks. The time includes all steps from results in memory to the metrics. It
does not include reading the annotations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.table import Table

from botvision.bench.measure import alternate
from botvision.bench.report import header
from botvision.evaluation.coco import coco_ground_truth, coco_metrics
from botvision.evaluation.evaluator import Metrics
from botvision.files import write_text
from botvision.terminal import terminal

OURS, THEIRS = "botvision", "pycocotools"
WIDTH, HEIGHT = 640, 480
OBJECTS = 7  # per image on average, as in COCO
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def blob(rng: np.random.Generator, place: np.ndarray) -> list[list[float]]:
    """Return a noisy ellipse as a polygon.

    Args:
        rng: source of the noise.
        place: center x, center y, half width, half height, in pixels.
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y, a, b = place
    wobble = rng.normal(1, 0.05, len(angles))
    xs = np.clip(x + a * wobble * np.cos(angles), 0, WIDTH)
    ys = np.clip(y + b * wobble * np.sin(angles), 0, HEIGHT)
    return [np.stack([xs, ys], 1).round(1).ravel().tolist()]


def encode(polygon: list[list[float]]) -> dict[str, Any]:
    return coco_mask.merge(coco_mask.frPyObjects(polygon, HEIGHT, WIDTH))


def scene(
    images: int, detections: int, classes: int, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the content of a COCO annotation file and detections for it.

    About half of the detections are close to an object; the others are anywhere.
    """
    rng = np.random.default_rng(seed)

    def place() -> np.ndarray:
        size = np.exp(rng.uniform(np.log(6), np.log(120), 2))
        return np.array(
            [*rng.uniform((0.1 * WIDTH, 0.1 * HEIGHT), (0.9 * WIDTH, 0.9 * HEIGHT)), *size]
        )

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    share = np.diff(np.linspace(0, detections, images + 1).astype(int))
    for image, count in enumerate(share, 1):
        objects = [(place(), int(rng.integers(classes)) + 1) for _ in range(rng.poisson(OBJECTS))]
        for where, category in objects:
            polygon = blob(rng, where)
            rle = encode(polygon)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": polygon,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": int(rng.random() < 0.01),
                }
            )
        for _ in range(count):
            if objects and rng.random() < 0.5:
                where, category = objects[rng.integers(len(objects))]
                where = where + 0.1 * where[[2, 3, 2, 3]] * rng.normal(size=4)
                where[2:] = np.maximum(where[2:], 3)
                score = rng.beta(4, 2)
            else:
                where, category, score = place(), int(rng.integers(classes)) + 1, rng.beta(1, 4)
            rle = encode(blob(rng, where))
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "score": float(score),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": k, "name": f"class{k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    return content, results


def by_pycocotools(truth: COCO, results: list[dict[str, Any]]) -> Metrics:
    """Return the twelve COCO metrics for boxes and for masks, and six AP metrics per class."""
    metrics: Metrics = {"per_class": {c["name"]: {} for c in truth.cats.values()}}
    with contextlib.redirect_stdout(None):
        detections = truth.loadRes(results)
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(truth, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics[kind] = dict(zip(NAMES, evaluation.stats.tolist(), strict=True))
            precision = evaluation.eval["precision"][..., -1]
            for k, category in enumerate(evaluation.params.catIds):
                every, *sizes = np.moveaxis(precision[:, :, k], -1, 0)
                parts = (every, every[0], every[5], *sizes)
                metrics["per_class"][truth.cats[category]["name"]][kind] = {
                    name: float(part.mean()) for name, part in zip(NAMES, parts, strict=False)
                }
    return metrics


def difference(one: Any, other: Any) -> float:
    """Return the largest difference between the numbers of two nested dicts with the same keys."""
    if not isinstance(one, dict):
        return abs(one - other)
    assert one.keys() == other.keys(), (list(one), list(other))
    return max(difference(one[key], other[key]) for key in one)


def evaluation(
    *, images: int, detections: int, classes: int, seconds: float, json_file: Path | None
) -> None:
    """Compare the metrics, then the times. Print the results and write them to a file."""
    console = terminal()
    content, results = scene(images, detections, classes)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        file = Path(folder) / "instances_val.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        ours, theirs = (
            coco_ground_truth(json.loads(file.read_text(encoding="utf-8"))),
            COCO(str(file)),
        )

    def fresh() -> list[dict[str, Any]]:
        return [dict(result) for result in results]  # pycocotools modifies them

    runs: dict[str, Callable[[], Metrics]] = {
        OURS: lambda: coco_metrics(ours, results, masks=True)[0],
        THEIRS: lambda: by_pycocotools(theirs, fresh()),
    }
    found = {name: run() for name, run in runs.items()}
    worst = difference(found[OURS], found[THEIRS])
    assert worst < 1e-9, f"the metrics differ by {worst:.2g}"

    times = alternate(runs, seconds=seconds, device="cpu")
    rows = []
    for name, values in times.items():
        low, median, high = (1e3 * q for q in statistics.quantiles(values, n=4, method="inclusive"))
        rows.append({"by": name, "runs": len(values), "median_ms": median, "spread_ms": high - low})
    ratio = rows[1]["median_ms"] / rows[0]["median_ms"]
    settings = {
        "images": images,
        "objects": len(content["annotations"]),
        "detections": detections,
        "classes": classes,
        "seconds": seconds,
    }
    head = header("evaluation", settings)
    head["versions"] |= {name: version(name) for name in ("faster-coco-eval", "pycocotools")}
    here = head["machine"]
    console.print(f"{here['cpu']}, {here['cores']} cores")
    console.print(
        f"{images} images, {settings['objects']:,} objects, {detections:,} detections of "
        f"{classes} classes; boxes and masks, mask AP {found[OURS]['segm']['AP']:.3f}",
    )
    table = Table("implementation")
    for column in ("median ms", "interquartile range", "runs"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = f"{row['median_ms']:.0f}", f"{row['spread_ms']:.0f}", str(row["runs"])
        table.add_row(row["by"], *figures)
    console.print(table, soft_wrap=False)
    console.print(f"speedup {ratio:.2f}x; largest difference of any metric {worst:.1g}")
    if json_file is not None:
        outcome = {"rows": rows, "ratio": ratio, "max_difference": worst}
        write_text(json_file, json.dumps({**head, **outcome}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="number of images")
    parser.add_argument(
        "--detections", type=int, default=24_000, help="number of detections in all images"
    )
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument("--seconds", type=float, default=60, help="time budget")
    parser.add_argument("--json", type=Path, dest="json_file", help="result file")
    evaluation(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
