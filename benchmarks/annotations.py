"""Reading a COCO annotation file of COCO's size, by two source trees.

A file with as many images, objects and polygon points as COCO's ``instances_train2017.json`` is
generated in a temporary folder. Each tree reads it in fresh processes, in turn, and the medians of
time and peak memory are printed.

    python benchmarks/annotations.py OLD/src NEW/src
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

IMAGES, OBJECTS, CLASSES, CROWD_SHARE = 118_000, 860_000, 80, 0.012

# Run in a fresh process: prints seconds and the peak of the resident memory in MiB.
_READ = """
import resource, sys, time
from pathlib import Path
from botvision.data.annotations import read_annotations
before = time.perf_counter()
read_annotations(Path(sys.argv[1]))
print(time.perf_counter() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_annotations(file: TextIO, images: int, objects: int, seed: int = 0) -> None:
    """Write polygons of 4 to 60 points, about 20 on average, in objects in random order."""
    rng = random.Random(seed)
    sizes = [(640, rng.choice((427, 480))) for _ in range(images)]
    entries = [
        {"id": 7 * k + 9, "file_name": f"{k:012d}.jpg", "width": width, "height": height}
        for k, (width, height) in enumerate(sizes)
    ]
    classes = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
    file.write(f'{{"images": {json.dumps(entries)}, "categories": {json.dumps(classes)}')
    file.write(', "annotations": [')
    for k in range(objects):
        image = rng.randrange(images)
        width, height = sizes[image]
        file.write((", " if k else "") + json.dumps(_annotation(rng, k, image, width, height)))
    file.write("]}")


def _annotation(
    rng: random.Random, k: int, image: int, width: int, height: int
) -> dict[str, object]:
    w, h = rng.uniform(6, width / 2), rng.uniform(6, height / 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    entry: dict[str, object] = {
        "area": round(0.6 * w * h, 4),
        "iscrowd": 0,
        "image_id": 7 * image + 9,
        "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)],
        "category_id": 1 + rng.randrange(CLASSES),
        "id": 3 * k + 5,
    }
    if rng.random() < CROWD_SHARE:
        start = int(x) * height
        counts = [start, 50, 30, 70, width * height - start - 150]
        return {**entry, "iscrowd": 1, "segmentation": {"counts": counts, "size": [height, width]}}
    points = min(60, 4 + int(rng.expovariate(1 / 16)))
    # Along the edges of the box: the upper half from left to right, the lower one back.
    half = points // 2
    polygon = []
    for i in range(points):
        along = (i + 0.5) / half if i < half else (points - i - 0.5) / (points - half)
        depth = rng.uniform(0, 0.4) if i < half else rng.uniform(0.6, 1)
        polygon += [round(x + w * along, 2), round(y + h * depth, 2)]
    return {**entry, "segmentation": [polygon]}


def measure(tree: Path, file: Path) -> tuple[float, float]:
    """Seconds and MiB of one fresh process that reads ``file`` with the code in ``tree``."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _READ, str(file)]
    output = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    seconds, mebibytes = map(float, output.split())
    return seconds, mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="source tree to compare with, such as OLD/src")
    parser.add_argument("new", type=Path, help="source tree, such as src")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        with path.open("w", encoding="utf-8") as file:
            write_annotations(file, options.images, options.objects)
        print(f"{options.images:,} images, {options.objects:,} objects, {path.stat().st_size:,} B")
        trees = {"old": options.old.resolve(), "new": options.new.resolve()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for _ in range(options.runs):
            for name, tree in trees.items():
                found[name].append(measure(tree, path))
                print(name, "{:.2f} s, {:.0f} MiB".format(*found[name][-1]), flush=True)
    medians = {
        name: [statistics.median(values) for values in zip(*runs, strict=True)]
        for name, runs in found.items()
    }
    for name, (seconds, mebibytes) in medians.items():
        print(f"median {name}: {seconds:.2f} s, {mebibytes:.0f} MiB")
    ratios = [new / old for old, new in zip(*medians.values(), strict=True)]
    print("new / old: time {:.3f}, peak memory {:.3f}".format(*ratios))


if __name__ == "__main__":
    main()
