"""Check a data set before training."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from botvision.config import CheckConfig
from botvision.data.coco import CocoData, find_splits, load_split
from botvision.data.detection import DetectionData
from botvision.data.findings import (
    Finding,
    Split,
    class_findings,
    file_findings,
    identical_findings,
    image_findings,
    mask_findings,
    object_findings,
    skipped_findings,
)
from botvision.data.formats import ClassificationSource, DetectionSource, classification_splits
from botvision.data.inspection import ImageFacts, inspect_all
from botvision.data.object_checks import box_sides
from botvision.data.pixel_survey import StoredImages, survey_pixels
from botvision.data.pixels import Pixels
from botvision.data.skipped import Skipped
from botvision.data.sources import open_data, task_of
from botvision.files import make_folder
from botvision.settings import make_config
from botvision.tasks.check_sheet import draw_sheet
from botvision.tasks.task import pixel_notices
from botvision.terminal import print_text, terminal
from botvision.visualize.figures import save_image

# Lower edges of the histograms' bins, in pixels.
_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# Classes that are printed; all of them are in the report.
_CLASSES = 12


@dataclass(frozen=True)
class CheckReport:
    """The content of a data set, and what is probably wrong with it.

    Args:
        data: name of the data set.
        splits: the counts of each split, by its name.
        findings: what is probably wrong, largest count first.
        sheet: file of the contact sheet, or None if no image can be read.
    """

    data: str
    splits: dict[str, dict[str, Any]]
    findings: list[Finding]
    sheet: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        findings = [
            {
                **{"kind": f.kind, "split": f.split, "message": f.message},
                **{"count": f.count, "names": [*f.names]},
            }
            for f in self.findings
        ]
        sheet = None if self.sheet is None else str(self.sheet)
        return {"data": self.data, "splits": self.splits, "findings": findings, "sheet": sheet}


def check(
    data: str | Path | DetectionSource | ClassificationSource,
    *,
    console: Console | None = None,
    **options: Any,
) -> CheckReport:
    """Check a data set: read all annotations and images, and find what is probably wrong.

    Args:
        data: data as for ``botvision.train``.
        console: where to print. By default the terminal or notebook.
        options: fields of ``botvision.config.CheckConfig``, such as ``out="runs/check"``.

    Returns:
        The report, which is also printed. The contact sheet shows images with their annotations,
        most suspicious first.

    Raises:
        UserError: the data cannot be read, or an option is invalid.
    """
    config = make_config(CheckConfig, options)
    console = console or terminal()
    splits, findings = _open(data, config)
    notices = _settle_pixels(splits)
    facts = {name: _inspect(name, split, config, console) for name, split in splits.items()}
    for name, split in splits.items():
        findings += [*image_findings(name, facts[name]), *file_findings(name, split)]
        if isinstance(split, CocoData):
            findings += object_findings(name, split)
    if config.task is None:
        findings += mask_findings(splits)
    classes = {
        name: [split.classes[label] for label in split.labels]
        for name, split in splits.items()
        if not isinstance(split, DetectionData) and hasattr(split, "labels")
    }
    findings += identical_findings(facts, classes)
    counts = {name: _counts(split, facts[name]) for name, split in splits.items()}
    findings += class_findings({name: own.get("classes", {}) for name, own in counts.items()})
    findings.sort(key=lambda finding: -finding.count)

    source = str(data) if isinstance(data, str | Path) else "data"
    sheet = None
    picture = draw_sheet(splits, findings, facts)
    if picture is not None:
        folder = config.out or Path("runs") / f"{Path(source).name.split('.')[0]}-check"
        make_folder(folder)
        sheet = folder / "sheet.png"
        save_image(picture, sheet)
    report = CheckReport(source, counts, findings, sheet)
    _print(console, report, splits, notices)
    return report


def _open(data: Any, config: CheckConfig) -> tuple[dict[str, Split], list[Finding]]:
    """Open the splits, and find the entries that cannot be used."""
    if not isinstance(data, str | Path):
        return dict(data), []
    source = str(data)
    task = config.task or task_of(source)
    if task == "classification":
        openers = classification_splits(source)
        return {name: opener(None) for name, opener in openers.items()}, []
    splits: dict[str, Split] = {}
    findings: list[Finding] = []
    for name, split in find_splits(open_data(source)).items():
        skipped: list[Skipped] = []
        wanted = None if config.task == "classification" else config.task
        splits[name] = load_split(split, wanted, skipped=skipped)
        findings += skipped_findings(name, skipped)
    return splits, findings


def _settle_pixels(splits: Mapping[str, Split]) -> list[str]:
    """Have the images read as in training, and return lines about them."""
    first = splits.get("train", next(iter(splits.values())))
    if not isinstance(first, StoredImages):
        return []
    pixels = Pixels(survey_pixels(first).range)
    return [
        f"{name}: {notice}"
        for name, split in splits.items()
        for notice in pixel_notices(split, pixels)
    ]


def _inspect(name: str, split: Split, config: CheckConfig, console: Console) -> list[ImageFacts]:
    images = inspect_all(split, config.workers)
    return list(
        track(
            images,
            description=f"reading {name}",
            total=len(split),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )


def _counts(split: Split, facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Count what a split contains, as JSON types."""
    read = [image for image in facts if image.error is None]
    counts: dict[str, Any] = {
        "images": len(split),
        "image_sides": _histogram(np.array([max(image.size) for image in read])),
        "pixels": {
            mode: [min(i.low for i in own), max(i.high for i in own)]
            for mode in dict.fromkeys(image.mode for image in read)
            for own in [[image for image in read if image.mode == mode]]
        },
    }
    if isinstance(split, CocoData):
        a = split.annotations
        own = Counter(a.category_ids[~a.crowd].tolist())
        named = zip(split.categories.ids, split.categories.names, strict=True)
        with_objects = np.unique(a.image_of()[~a.crowd])
        counts |= {
            "images_without_objects": len(split) - len(with_objects),
            "objects": split.num_objects,
            "crowd_regions": int(a.crowd.sum()),
            "objects_without_masks": split.num_objects - split.num_masks,
            "left_out": a.left_out,
            "classes": {name: own[id_] for id_, name in named},
            "box_sides": _histogram(box_sides(split)),
        }
    elif isinstance(split, DetectionData):
        objects = [split.objects(index) for index in range(len(split))]
        own = Counter(category for o in objects for category in o.category_ids.tolist())
        named = zip(split.categories.ids, split.categories.names, strict=True)
        sides = [np.sqrt(np.prod(o.boxes[:, 2:] - o.boxes[:, :2], axis=1)) for o in objects]
        counts |= {
            "images_without_objects": sum(not len(o.boxes) for o in objects),
            "objects": own.total(),
            "classes": {name: own[id_] for id_, name in named},
            "box_sides": _histogram(np.concatenate([np.empty(0), *sides])),
        }
    elif hasattr(split, "labels"):
        own = Counter(split.labels)
        counts["classes"] = {name: own[label] for label, name in enumerate(split.classes)}
    return counts


def _histogram(values: NDArray[Any]) -> dict[str, int]:
    """Numbers of values by their range in pixels, such as ``"8-16"``."""
    bins = np.bincount(np.digitize(values, _EDGES) - 1, minlength=len(_EDGES)).tolist()
    names = [f"{low}-{high}" for low, high in itertools.pairwise(_EDGES)]
    named = zip([*names, f"{_EDGES[-1]}-"], bins, strict=True)
    return {name: count for name, count in named if count}


def _print(
    console: Console, report: CheckReport, splits: Mapping[str, Split], notices: Sequence[str]
) -> None:
    for name, split in splits.items():
        counts = report.splits[name]
        print_text(console, split.summary())
        classes = sorted(counts.get("classes", {}).items(), key=lambda pair: -pair[1])
        rows = {
            "classes": _listed(classes),
            "box side, px": _listed(counts.get("box_sides", {}).items()),
            "image side, px": _listed(counts["image_sides"].items()),
            "pixel values": ", ".join(
                f"{mode} {low:g} to {high:g}" for mode, (low, high) in counts["pixels"].items()
            ),
        }
        for title, text in rows.items():
            if text:
                print_text(console, f"  {title:16}{text}")
    for notice in notices:
        print_text(console, notice)
    number = len(report.findings)
    print_text(console, f"{number} finding{'s' * (number > 1)}:" if number else "no findings")
    for finding in report.findings:
        print_text(console, f"  {finding}")
    if report.sheet is not None:
        print_text(console, f"contact sheet: {report.sheet}")


def _listed(counts: Any) -> str:
    pairs = [f"{name}: {count:,}" for name, count in counts]
    if len(pairs) > _CLASSES:
        pairs = [*pairs[: _CLASSES - 2], "...", pairs[-1]]
    return ", ".join(pairs)
