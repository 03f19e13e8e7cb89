"""Every test that docs/reliability.md names exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "reliability.md"


def test_the_tests_in_the_table_exist():
    named = re.findall(r"`([\w/]+\.py)::([\w*]+)`", DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 50
    for file, name in named:
        text = (TESTS / file).read_text(encoding="utf-8")
        assert name == "*" or f"def {name}(" in text, f"{file}::{name}"


def test_every_row_names_a_test():
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| fault")]
    assert rows
    for row in rows:
        assert ".py::" in row, row
