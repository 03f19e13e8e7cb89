"""``botvision bench``: time and memory on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from botvision.bench.config import AttentionBenchConfig, DataBenchConfig, ModelBenchConfig
from botvision.cli.parsers import Parser, config_parser

GROUPS = {
    "data and model": [
        *("images", "image_size", "policy", "jitter", "sizes", "dim", "num_heads", "batch_size"),
        "impl",
    ],
    "measurement": ["mode", "seconds"],
    "hardware": ["device", "precision", "compile"],
    "output": ["json", "plot"],
}


def bench_parser() -> Parser:
    """``botvision bench``, with a subcommand per benchmark."""
    parser = Parser(description="Measure time and memory on this machine.")
    subcommands = parser.add_subcommands(required=True, dest="benchmark")
    for name, usage, config, text in (
        ("attention", "", AttentionBenchConfig, "every implementation, timm's, and a convolution"),
        ("model", " [MODEL[@PIXELS] ...]", ModelBenchConfig, "whole models"),
        ("data", " DATA", DataBenchConfig, "loading and augmenting images"),
    ):
        subparser = config_parser(config)
        subparser.set_groups(GROUPS)
        subcommands.add_subcommand(name, subparser, help=text)
        subparser.prog = f"botvision bench {name}"
        subparser.usage = f"{subparser.prog} [options]{usage}"
    return parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Run the benchmark that the arguments name."""
    parsed = parser.parse_args(list(arguments)).as_dict()
    benchmark = parsed["benchmark"]
    options = parsed[benchmark]
    # Set before torch loads: the profiler that counts memory on the CPU would print its own start
    # and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if benchmark == "attention":
        from botvision.bench.attention import bench_attention

        bench_attention(AttentionBenchConfig(**options))
    elif benchmark == "model":
        from botvision.bench.models import bench_models

        bench_models(ModelBenchConfig(**options))
    else:
        from botvision.bench.data import bench_data

        bench_data(DataBenchConfig(**options))
