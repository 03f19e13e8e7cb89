"""``botvision check``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from botvision.cli.parsers import Parser, config_parser
from botvision.config import CheckConfig


def check_parser() -> Parser:
    """``botvision check``."""
    parser = config_parser(CheckConfig)
    parser.description = (
        "Check a data set before training: read all annotations and images, and list what is "
        "suspicious. The exit status is 0 without findings, 1 with findings, and 2 if the data "
        "cannot be read."
    )
    parser.add_argument(
        "data", type=str, help="COCO folder, class folders, an archive or a built-in set."
    )
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")
    parser.usage = "botvision check [options] DATA"
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Check a data set; exit with status 1 if there are findings."""
    options = parser.given(arguments)
    as_json = options.pop("json", False)
    from botvision.tasks.check import check
    from botvision.terminal import terminal

    report = check(options.pop("data"), console=terminal(quiet=as_json), **options)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    if report.findings:
        sys.exit(1)
