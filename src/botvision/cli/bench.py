"""``botvision bench``: time and memory on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser

from botvision.bench.config import AttentionBenchConfig, DataBenchConfig, ModelBenchConfig
from botvision.cli.parsers import Parser


def bench_parser() -> Parser:
    """``botvision bench``, with a subcommand per benchmark."""
    parser = Parser(description="Measure time and memory on this machine.")
    subcommands = parser.add_subcommands(required=True, dest="benchmark")
    for name, config, text in (
        ("attention", AttentionBenchConfig, "every implementation, timm's, and a convolution"),
        ("model", ModelBenchConfig, "whole models"),
        ("data", DataBenchConfig, "loading and augmenting images"),
    ):
        subparser = config_parser(config)
        subcommands.add_subcommand(name, subparser, help=text)
        subparser.prog = f"botvision bench {name}"
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


def config_parser(config: type[Any]) -> Parser:
    """A parser of the fields of a dataclass, whose docstring is the help.

    Positional fields become positional arguments and keyword-only fields become options. A list
    accepts several values, and a bool is a switch.
    """
    documentation = docstring_parser.parse(config.__doc__ or "")
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    types = get_type_hints(config)
    parser = Parser(description=documentation.description)
    for field in fields(config):
        name = f"--{field.name.replace('_', '-')}" if field.kw_only else field.name
        settings = _type_settings(field, types[field.name])
        parser.add_argument(name, help=helps[field.name], **settings)
    return parser


def _type_settings(field: Field[Any], hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` that follow from a field's type and default."""
    settings: dict[str, Any] = {}
    if field.default_factory is not MISSING:
        settings["default"] = field.default_factory()
    elif field.default is not MISSING:
        settings["default"] = field.default
    if hint is bool:
        return {**settings, "action": "store_true"}
    for option in (hint, *get_args(hint)):  # a list, or a list or None
        if get_origin(option) is list:
            (item,) = get_args(option)
            return {**settings, "type": item, "nargs": "+" if field.kw_only else "*"}
    return {**settings, "type": hint}
