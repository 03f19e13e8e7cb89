"""Tables and figures of the documentation, made by the code that they describe.

``python docs/generate.py`` rewrites the tables in models.md and the figures of how-it-works.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import botvision
from botvision.attention.position import relative_logits
from botvision.models import list_models
from botvision.models.summary import summarize

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAIRS = ("resnet50-botnet50-1024", "resnet50-botnet50-224", "efficientnet-b7-botnet-t7")


def models_table() -> str:
    """The paper's models, counted now, and what the paper reports."""
    lines = [
        "| model | image size (px) | parameters (M) | paper | multiply-adds (G) | paper |"
        " top-1 (%), paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in list_models():
        row = summarize(name)
        paper = row.paper
        parameters = multiply_adds = top1 = ""
        if paper is not None:
            parameters = f"{paper.parameters:g}"
            multiply_adds = f"{paper.multiply_adds:g}" if paper.multiply_adds else ""
            top1 = f"{paper.top1:.1f}" if paper.top1 else ""
        lines.append(
            f"| `{name}` | {row.image_size} | {row.parameters / 1e6:.2f} | {parameters} | "
            f"{row.multiply_adds / 1e9:.2f} | {multiply_adds} | {top1} |"
        )
    return "\n".join(lines)


def speed_table(cpu: str) -> str:
    """Time and memory of whole models on a kind of CPU, from the recorded benchmarks."""
    lines = [
        "| model | image size (px) | batch | precision | median time (ms) | images/s |"
        " peak memory (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in PAIRS:
        content = json.loads((RESULTS / f"{pair}-{cpu}.json").read_text(encoding="utf-8"))
        for row in content["rows"]:
            precision = {"32": "float32"}.get(row["precision"], row["precision"])
            lines.append(
                f"| `{row['model']}` | {row['image_size']} | {row['batch_size']} | {precision} | "
                f"{row['median_ms']:.0f} | {row['images_per_second']:.1f} | {row['peak_mib']:.0f} |"
            )
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The tables of models.md by the name of their marks."""
    return {
        "models": models_table(),
        "speed": speed_table("cpu"),
        "speed without AMX": speed_table("cpu-zen5"),
    }


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


def draw_chain(axes: Axes, title: str, steps: list[tuple[str, bool]], across: bool) -> None:
    """Boxes with arrows between them, downwards or from left to right; attention is orange."""
    axes.set_title(title, fontsize=10)
    axes.axis("off")
    for number, (label, attends) in enumerate(steps):
        at = (number, 0) if across else (0, -number)
        color = "#fbe3d2" if attends else "#e3ecf7"
        axes.annotate(
            label,
            xy=at,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.5", "fc": color, "ec": "#d55e00" if attends else "#555"},
        )
        if number:
            before = (number - 0.56, 0) if across else (0, 0.62 - number)
            after = (number - 0.44, 0) if across else (0, 0.38 - number)
            axes.annotate("", xy=after, xytext=before, arrowprops={"arrowstyle": "->"})
    last = len(steps) - 0.5
    axes.set(xlim=(-0.5, last) if across else (-1, 1), ylim=(-1, 1) if across else (-last, 0.5))


def draw_surgery(path: Path) -> None:
    """The layers of a block of c5 in ResNet-50 and in BoTNet-50, read off the two models."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained", facecolor="white")
    panels = zip(figure.subplots(1, 2), ("resnet50", "botnet50"), strict=True)
    for axes, name in panels:
        block = botvision.create_model(name).layer4[1]
        steps = []
        for layer in (block.conv1, block.conv2, block.conv3):
            attends = not isinstance(layer, nn.Conv2d)
            if attends:
                steps.append((f"MHSA, {layer.num_heads} heads, {layer.dim} channels", True))
            else:
                side, _ = layer.kernel_size
                widths = f"{layer.in_channels} to {layer.out_channels}"
                steps.append((f"{side}x{side} convolution, {widths} channels", False))
        million = sum(parameter.numel() for parameter in block.parameters()) / 1e6
        draw_chain(axes, f"{name}, layer4[1]: {million:.2f} M parameters", steps, across=False)
    figure.savefig(path, dpi=110)


def feature_sizes(name: str, image_size: int) -> list[tuple[str, bool]]:
    """Sizes of the feature maps from c4 to the last block of c5, from a forward pass."""
    with torch.device("meta"):
        model = botvision.create_model(name, image_size=image_size).eval()
    steps: list[tuple[str, bool]] = []

    def note(label: str, attends: bool) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            height, width = (inputs[0] if attends else output).shape[-2:]
            steps.append((f"{label}\n{height} x {width}", attends))

        return hook

    model.layer3.register_forward_hook(note("c4", False))
    for block in model.layer4:
        attention = block.conv2
        attention.qkv.register_forward_hook(note("MHSA", True))
        if not isinstance(attention.pool, nn.Identity):
            attention.pool.register_forward_hook(note("2x2 average\npooling", False))
    model.layer4.register_forward_hook(note("c5", False))
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return steps


def draw_strides(path: Path) -> None:
    """Where BoTNet-50 and BoTNet-S1-50 attend and where they pool."""
    figure = Figure(figsize=(9.6, 2.4), layout="constrained", facecolor="white")
    panels = (("botnet50", 1024), ("botnet50_s1", 224))
    for axes, (name, size) in zip(figure.subplots(2, 1), panels, strict=True):
        draw_chain(axes, f"{name}, {size} px", feature_sizes(name, size), across=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Rewrite the tables and the figures."""
    page = DOCS / "models.md"
    text = page.read_text(encoding="utf-8")
    for name, table in tables().items():
        text = with_table(text, name, table)
    page.write_text(text, encoding="utf-8")
    draw_positions(DOCS / "images" / "positions.png")
    draw_surgery(DOCS / "images" / "surgery.png")
    draw_strides(DOCS / "images" / "strides.png")


if __name__ == "__main__":
    main()
