"""The documents, help texts and docstrings use plain technical English.

Each pattern is a habit to avoid, with what to write instead: subject first, one fact per sentence,
the field's own words.
"""

import ast
import re
from pathlib import Path

import pytest

from botvision.cli.main import COMMANDS
from botvision.cli.train import train_parser

ROOT = Path(__file__).parents[1]
PER = (
    r"image|step|second|level|process|class|core|line|row|pixel|run|epoch|map|batch|machine|head|"
    r"block|stage|query|key|layer|method|kind|minute|hour"
)
COUNTED = (
    r"anchors|boxes|bytes|cells|channels|detections|events?|figures?|files?|GiB|images|instances|"
    r"kept|lines?|masks|MiB|milliseconds|ms|objects|pixels|points|process(es)?|proposals|regions|"
    r"rows?|runs?|samples|seconds|steps|terms?|times|tokens|values|views|workers"
)
HABITS = {
    r"\balone\b": "only",
    r"\bbeside\b": "next to; compared with",
    r"\bcould not be had\b": "is not available",
    r"\bso many\b": "that number of; name the number",
    r"\bsay(s|ing)?\b": "report, state, print, contain",
    r"\b(go|goes|going) on\b": "resume, continue",
    r"\bto the bit\b": "bit-for-bit; exactly",
    r"\banew\b": "again",
    r"\bgives\b": "returns, produces, contains",
    r"\btakes\b(?! (\d|about|at (most|least)|up to|as long|longer|(more |less )?time|place))": (
        "accepts, uses, requires"
    ),
    r"\blikewise\b": "the same; repeat the words",
    r"\balike\b": "the same way",
    r"\bmend(s|ed)?\b": "fix",
    r"\bwhence\b|\blest\b|\bthereof\b|\bupon\b|\bnor\b": "plain connectives: and, so that, or",
    r"\bhears\b": "receives",
    r"\btold apart\b|\btell \w+ apart\b": "distinguish",
    r"(?<![\w-])(Of|From|With|Beside) "
    r"(a|an|the|several|each|its|all|those|more|both|equals)\b[^.,]*,": "put the subject first",
    rf"\b({COUNTED}) (kept |drawn |taken )?an? ({PER})\b": "per",
    r"\bits own\b.{0,20}\bone's own\b": "name it",
    r"^What (?!is\b)": "a noun phrase: 'Attention weights, (B, heads, H, W, H, W)'",
}


def documents():
    for path in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"]
    ):
        # Code and commands are not prose.
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        yield str(path.relative_to(ROOT)), re.sub(r"`[^`]*`", "`code`", text)
    for path in sorted(ROOT.glob("src/botvision/recipes/**/*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = [line.partition("#")[2] for line in lines if "#" in line]
        yield str(path.relative_to(ROOT)), "\n".join(comments)


def helps():
    parsers = {name: make() for name, (make, _, _) in COMMANDS.items()}
    parsers["train (classification)"] = train_parser("classification")
    for name, parser in list(parsers.items()):
        if parser._subcommands_action is not None:
            choices = parser._subcommands_action.choices
            parsers |= {f"{name} {sub}": own for sub, own in choices.items()}
    for name, parser in parsers.items():
        yield f"botvision {name} --help", parser.format_help()


def docstrings():
    for path in sorted(ROOT.glob("src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    name = getattr(node, "name", "module")
                    yield f"{path.relative_to(ROOT)}: {name}", re.sub(r"`[^`]*`", "`code`", text)


def violations(text):
    for pattern, instead in HABITS.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            start, end = max(0, match.start() - 30), match.end() + 30
            around = " ".join(text[start:end].split())
            yield f"'{match[0]}' in '...{around}...': {instead}"


@pytest.mark.parametrize("texts", [documents, helps, docstrings])
def test_no_habit_to_avoid(texts):
    found = [f"{where}: {fault}" for where, text in texts() for fault in violations(text)]
    assert not found, "\n".join([f"{len(found)} places", *found])


def test_the_patterns_find_what_they_are_for():
    for text in (
        "detections kept an image",
        "Of a detector, the boxes.",
        "the float32 logits alone",
        "one event a line",
        "What every cell takes from every cell",
        "goes on to the bit",
    ):
        assert list(violations(text)), text
    for text in (
        "takes 3 minutes",
        "maximum detections per image",
        "an image",
        "What is new",
        "a run of the model",
    ):
        assert not list(violations(text)), text
