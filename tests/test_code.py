"""What the code promises about itself."""

import ast
import re
from pathlib import Path

import pytest

from botvision.training.callbacks import Evaluation

ROOT = Path(__file__).parents[1]
FILES = sorted(
    [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_reads_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_library_does_not_speak_of_flags():
    """Its errors name parameters, for which the command writes flags."""
    found = []
    for path in ROOT.glob("src/botvision/**/*.py"):
        if "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and ast.get_docstring(node) is not None
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                flag = re.search(r"(?<![\w-])--[a-z]", node.value)
                if flag and id(node) not in docstrings:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}")
    assert found == []


def public_functions(node, owner=""):
    """(name, definition) of the functions and methods that have documentation of their own."""
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from public_functions(part, f"{part.name}.")
        elif isinstance(part, ast.FunctionDef) and not part.name.startswith(("_", "on_")):
            yield owner + part.name, part


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if "src" in path.parts and path.name != "triton_kernels.py"],
    ids=lambda path: str(path.relative_to(ROOT / "src")),
)
def test_three_parameters_are_documented(path):
    """Which of them, and what they return, is for ruff's rules D417 and DOC."""
    for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        arguments = function.args.args + function.args.posonlyargs + function.args.kwonlyargs
        named = [one.arg for one in arguments if one.arg not in ("self", "cls")]
        documented = "Args:" in (ast.get_docstring(function) or "")
        assert documented or len(named) < 3, f"{path.name}:{function.lineno} {name} has no Args:"


def test_the_best_score_of_an_old_checkpoint_is_kept():
    """Else the resumed run would replace its best model by a worse one."""
    for name in ("CocoEvaluation", "ClassEvaluation"):
        evaluation = Evaluation([])
        evaluation.on_load_checkpoint(None, None, {"callbacks": {name: {"best": 0.5}}})
        assert evaluation.best == 0.5
