"""Rows as they are measured: tables on the terminal, and a JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from botvision.bench.attention import AttentionRow
from botvision.bench.data import DataRow
from botvision.bench.models import ModelRow
from botvision.environment import machine, versions
from botvision.files import write_text

_LEGEND = "ms: median; spread: interquartile range; MiB: peak memory above the start"

Row = TypeVar("Row", AttentionRow, ModelRow)


def header(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a JSON file says before its rows: ``kind``, when, on what machine, with what."""
    return {
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
    }


def collect(
    rows: list[Row],
    measure: Callable[..., Iterator[list[Row]]],
    *,
    header: dict[str, Any],
    table: Callable[[Sequence[Row]], Table],
    json: Path | None,
    console: Console,
) -> None:
    """Save each group of rows at once, and print a table whenever its last row is there.

    Also an interrupted run prints what there is.

    Args:
        rows: gets the rows.
        measure: called with ``say=``, gives groups of rows, those of a table in succession.
        header: see :func:`header`.
        table: of the rows of one mode and precision.
        json: the file, if any.
        console: where to print; what is being measured goes to standard error.
    """
    progress = Console(stderr=True)
    status = progress.status("")
    unprinted: list[Row] = []

    def say(line: str) -> None:
        status.update(line)
        status.start()
        if not progress.is_terminal:
            progress.print(line, highlight=False, soft_wrap=True)

    def show() -> None:
        status.stop()
        if unprinted:
            console.print(table(unprinted))
        for row in unprinted:
            if row.failure is not None:
                what = f"{_map(row)} {row.subject}" if isinstance(row, AttentionRow) else row.model
                console.print(f"{what}: {row.failure}", highlight=False, soft_wrap=True)
        unprinted.clear()

    here = header["machine"]
    on_gpu = header["settings"]["device"] == "cuda"
    on = here["gpu"] if on_gpu else f"{here['cpu']}, {here['threads']} threads"
    console.print(f"{on}, torch {header['versions']['torch']}", highlight=False, soft_wrap=True)
    try:
        for group in measure(say=say):
            if unprinted and _title(unprinted[0]) != _title(group[0]):
                show()
            unprinted += group
            rows += group
            if json is not None:
                content = {**header, "rows": [asdict(row) for row in rows]}
                write_text(json, dumps(content, indent=2) + "\n")
    finally:
        show()


def attention_table(rows: Sequence[AttentionRow]) -> Table:
    """A line for each map and subject, the choice of ``impl="auto"`` bold."""
    table = _table(
        _title(rows[0]),
        left=("map", "batch", "layer"),
        right=("ms", "spread", "MiB", "error", "vs timm"),
        caption=f"auto: chosen by impl=auto; {_LEGEND}; error: relative, from float64; vs timm: "
        "timm's time over this one's",
    )
    previous = ""
    for row in rows:
        new = _map(row) != previous
        if new:
            table.add_section()
        table.add_row(
            _map(row) if new else "",
            str(row.batch_size) if new else "",
            f"{row.subject} (auto)" if row.auto else row.subject,
            *_figures(row),
            "" if row.relative_error is None else f"{row.relative_error:.1e}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            style="bold" if row.auto else None,
        )
        previous = _map(row)
    return table


def model_table(rows: Sequence[ModelRow]) -> Table:
    """A line for each model."""
    table = _table(
        f"{_title(rows[0])}, batch {rows[0].batch_size}",
        left=("model",),
        right=("px", "params", "products", "ms", "spread", "MiB", "images/s", "time"),
        caption=f"products: multiply-adds of an image; {_LEGEND}; time: over the first model's",
    )
    for row in rows:
        table.add_row(
            row.model.partition("@")[0],
            str(row.image_size),
            f"{row.parameters / 1e6:.2f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            *_figures(row),
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
        )
    return table


def data_table(rows: Sequence[DataRow], image_size: int) -> Table:
    """A line for each pipeline."""
    table = _table(
        f"to {image_size} px, one process on one core",
        left=("pipeline",),
        right=("images/s", "spread", "speed"),
        caption="images/s: median; spread: interquartile range; speed: over the first row's",
    )
    for row in rows:
        rate, spread = f"{row.images_per_second:.0f}", f"{row.spread:.0f}"
        table.add_row(row.pipeline, rate, spread, f"{row.ratio:.2f}x")
    return table


def _title(row: AttentionRow | ModelRow) -> str:
    return f"{row.mode}, precision {row.precision}"


def _map(row: AttentionRow) -> str:
    return f"{row.height}x{row.width}"


def _table(title: str, *, left: Sequence[str], right: Sequence[str], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _figures(row: AttentionRow | ModelRow) -> tuple[str, str, str]:
    """Median, spread and peak, or dashes."""
    if row.median_ms is None or row.spread_ms is None or row.peak_mib is None:
        return "-", "-", "-"
    digits = 2 if row.median_ms < 100 else 1
    return f"{row.median_ms:.{digits}f}", f"{row.spread_ms:.{digits}f}", f"{row.peak_mib:.1f}"
