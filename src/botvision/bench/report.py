"""Rows as tables on the terminal and as JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from botvision.bench.config import AttentionBenchConfig, DataBenchConfig, ModelBenchConfig
from botvision.bench.rows import AttentionRow, DataRow, ModelRow
from botvision.environment import machine, versions
from botvision.files import write_text
from botvision.terminal import terminal

_LEGEND = "ms: median; spread: interquartile range; MiB: peak memory above the start"

Row = TypeVar("Row", AttentionRow, ModelRow)


def settings_of(
    config: AttentionBenchConfig | ModelBenchConfig | DataBenchConfig,
) -> dict[str, Any]:
    """Return the options that affect the rows: all options except the files to write."""
    return {name: value for name, value in asdict(config).items() if name not in ("json", "plot")}


def header(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the first entries of a result file: kind, time, machine, versions and settings."""
    return {
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
    }


def save_rows(
    path: Path, header: dict[str, Any], rows: Sequence[AttentionRow | ModelRow | DataRow]
) -> None:
    """Write a result file as JSON.

    Args:
        path: File to write.
        header: First entries of the file, see ``header``.
        rows: Rows of the benchmark. They become the entry ``rows``.
    """
    content = {**header, "rows": [asdict(row) for row in rows]}
    write_text(path, json.dumps(content, indent=2) + "\n")


class Report(Generic[Row]):
    """Prints and saves rows while they are measured.

    ``close`` prints the rows of an interrupted run.

    Args:
        header: First entries of the result file, see ``header``.
        table: Creates a table from the rows of one mode and precision.
        json: File for the rows, saved after each group.
        quiet: Print nothing.
    """

    def __init__(
        self,
        header: dict[str, Any],
        table: Callable[[Sequence[Row]], Table],
        *,
        json: Path | None = None,
        quiet: bool = False,
    ) -> None:
        self.rows: list[Row] = []
        self._header = header
        self._table: Callable[[Sequence[Row]], Table] = table
        self._json = json
        self._console = terminal(quiet)
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._status = self._stderr.status("")
        self._unprinted: list[Row] = []
        here = header["machine"]
        on_gpu = header["settings"]["device"] == "cuda"
        device = here["gpu"] if on_gpu else f"{here['cpu']}, {here['threads']} threads"
        self._console.print(f"{device}, torch {header['versions']['torch']}")

    def progress(self, line: str) -> None:
        """Show a line that describes the next measurement on standard error."""
        self._status.update(line)
        self._status.start()
        if not self._stderr.is_terminal:
            self._stderr.print(line)

    def add(self, group: Sequence[Row]) -> None:
        """Save a group of rows. Print the previous table if the group begins a new one."""
        if self._unprinted and _title(self._unprinted[0]) != _title(group[0]):
            self.close()
        self._unprinted += group
        self.rows += group
        if self._json is not None:
            save_rows(self._json, self._header, self.rows)

    def close(self) -> None:
        """Print the rows that have not been printed yet."""
        self._status.stop()
        if self._unprinted:
            self._console.print(self._table(self._unprinted), soft_wrap=False)
        for row in self._unprinted:
            if row.failure is not None:
                self._console.print(f"{row.label}: {row.failure}")
        self._unprinted.clear()


def attention_table(rows: Sequence[AttentionRow]) -> Table:
    """Return a table with one line per map and layer. The choice of ``impl="auto"`` is bold."""
    table = _table(
        _title(rows[0]),
        left=("map", "batch", "layer"),
        right=("ms", "spread", "MiB", "error", "vs timm"),
        caption=f"auto: chosen by impl=auto; {_LEGEND}; error: relative, from float64; vs timm: "
        "timm's time divided by this one's",
    )
    previous = ""
    for row in rows:
        new = row.map != previous
        if new:
            table.add_section()
        table.add_row(
            row.map if new else "",
            str(row.batch_size) if new else "",
            f"{row.subject} (auto)" if row.auto else row.subject,
            *_numbers(row),
            "" if row.relative_error is None else f"{row.relative_error:.1e}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            style="bold" if row.auto else None,
        )
        previous = row.map
    return table


def model_table(rows: Sequence[ModelRow]) -> Table:
    """Return a table with one line per model."""
    table = _table(
        f"{_title(rows[0])}, batch {rows[0].batch_size}",
        left=("model",),
        right=("px", "params", "products", "ms", "spread", "MiB", "images/s", "time"),
        caption=f"products: multiply-adds per image; {_LEGEND}; time: divided by the first model's",
    )
    for row in rows:
        table.add_row(
            row.model.partition("@")[0],
            str(row.image_size),
            f"{row.parameters / 1e6:.2f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            *_numbers(row),
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
        )
    return table


def data_table(rows: Sequence[DataRow], image_size: int) -> Table:
    """Return a table with one line per pipeline."""
    table = _table(
        f"to {image_size} px, one process on one core",
        left=("pipeline",),
        right=("images/s", "spread", "speed"),
        caption="images/s: median; spread: interquartile range; speed: divided by the first row's",
    )
    for row in rows:
        rate, spread = f"{row.images_per_second:.0f}", f"{row.spread:.0f}"
        table.add_row(row.pipeline, rate, spread, f"{row.ratio:.2f}x")
    return table


def _title(row: AttentionRow | ModelRow) -> str:
    return f"{row.mode}, precision {row.precision}"


def _table(title: str, *, left: Sequence[str], right: Sequence[str], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _numbers(row: AttentionRow | ModelRow) -> tuple[str, str, str]:
    """Return median, spread and peak memory as text, or dashes after a failure."""
    if row.median_ms is None or row.spread_ms is None or row.peak_mib is None:
        return "-", "-", "-"
    digits = 2 if row.median_ms < 100 else 1
    return f"{row.median_ms:.{digits}f}", f"{row.spread_ms:.{digits}f}", f"{row.peak_mib:.1f}"
