"""Tables and figures of the documentation, made by the code that they describe.

``python docs/generate.py`` rewrites the tables in models.md and the figure of how-it-works.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from botvision.attention.position import relative_logits
from botvision.models import list_models
from botvision.models.summary import summarize

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAIRS = ("resnet50-botnet50-1024", "resnet50-botnet50-224", "efficientnet-b7-botnet-t7")


def models_table() -> str:
    """The paper's models, counted now, and what the paper reports."""
    lines = [
        "| model | image size | parameters | multiply-adds | paper: parameters | multiply-adds | "
        "top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in list_models():
        row = summarize(name)
        paper = row.paper
        published = ["", "", ""]
        if paper is not None:
            published = [
                f"{paper.parameters:g} M",
                f"{paper.multiply_adds:g} G" if paper.multiply_adds else "",
                f"{paper.top1:g} %" if paper.top1 else "",
            ]
        own = [f"`{name}`", str(row.image_size), f"{row.parameters / 1e6:.2f} M"]
        lines.append(
            "| " + " | ".join([*own, f"{row.multiply_adds / 1e9:.2f} G", *published]) + " |"
        )
    return "\n".join(lines)


def speed_table() -> str:
    """Time and memory of whole models, from the recorded benchmarks."""
    lines = [
        "| model | image size | batch | precision | median time | images/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in PAIRS:
        content = json.loads((RESULTS / f"{pair}-cpu.json").read_text(encoding="utf-8"))
        for row in content["rows"]:
            precision = {"32": "float32"}.get(row["precision"], row["precision"])
            lines.append(
                f"| `{row['model']}` | {row['image_size']} | {row['batch_size']} | {precision} | "
                f"{row['median_ms']:.0f} ms | {row['images_per_second']:.1f} | "
                f"{row['peak_mib']:.0f} MiB |"
            )
    return "\n".join(lines)


def with_table(text: str, name: str, table: str) -> str:
    """The page with the table between the marks of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{table}\n\n{end}", text, flags=re.DOTALL)


def draw_positions(path: Path, height: int = 6, width: int = 9) -> None:
    """Which row of each table a query uses for every key, read off the code's own logits.

    With one channel, a query of 1 and tables that hold their row numbers, a logit is a row number.
    """
    query = (2, 6)
    rows, columns = (torch.arange(2.0 * side - 1)[:, None] for side in (height, width))
    by_row, by_column = relative_logits(torch.ones(1, 1, height, width, 1), rows, columns, 1.0)
    by_row = by_row[0, 0, query[0], query[1]][:, None].expand(height, width)
    by_column = by_column[0, 0, query[0], query[1]][None].expand(height, width)
    figure = Figure(figsize=(9.6, 2.7), layout="constrained", facecolor="white")
    titles = ("row of height_rel for each key", "row of width_rel for each key")
    for axes, values, title in zip(figure.subplots(1, 2), (by_row, by_column), titles, strict=True):
        axes.imshow(values, cmap="Blues", vmin=-4, vmax=float(values.max()) + 4)
        for y in range(height):
            for x in range(width):
                axes.text(x, y, f"{int(values[y, x])}", ha="center", va="center", fontsize=9)
        axes.add_patch(
            Rectangle(
                (query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor="#d55e00", lw=2.5
            )
        )
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Rewrite the tables and the figure."""
    page = DOCS / "models.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("models", models_table()), ("speed", speed_table())):
        text = with_table(text, name, table)
    page.write_text(text, encoding="utf-8")
    draw_positions(DOCS / "images" / "positions.png")


if __name__ == "__main__":
    main()
