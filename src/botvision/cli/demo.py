"""``botvision demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from botvision.cli.parsers import Parser


def demo_parser() -> Parser:
    """``botvision demo``."""
    parser = Parser(description="Train on the built-in shapes, evaluate, and draw the results.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="Run folder.")
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Run the demo."""
    options = parser.parse_args(list(arguments))
    from botvision.tasks.demo import demo

    demo(options.out)
