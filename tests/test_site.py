"""The documentation site: its snippets run, its tables are the code's, and it builds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TESTED_ELSEWHERE = {"api.md", "extending.md"}  # test_api_document.py, test_extension.py
PAGES = [
    path
    for path in sorted(DOCS.glob("*.md"))
    if "```python" in path.read_text(encoding="utf-8") and path.name not in TESTED_ELSEWHERE
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_snippets_run_in_order(page, tmp_path):
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
    environment = {**os.environ, "BOTVISION_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_tables_are_current():
    location = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(location)
    location.loader.exec_module(generate)
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    for name, table in generate.tables().items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->" in text, (
            "python docs/generate.py rewrites it"
        )


@pytest.mark.skipif(
    not (importlib.util.find_spec("material") and importlib.util.find_spec("mkdocstrings")),
    reason="the docs extra is not installed (make install installs it)",
)
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))  # and the page for a wrong address
    loaded = r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*stylesheet[^>]*//"""
    for page in pages:
        assert re.findall(loaded, page.read_text(encoding="utf-8")) == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        content = sheet.read_text(encoding="utf-8")
        assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", content) == [], sheet.name
