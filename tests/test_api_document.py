"""The snippets of docs/api.md run, in order, in a Jupyter notebook."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCUMENT = Path(__file__).parents[1] / "docs" / "api.md"


def snippets():
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def checks(folder):
    """What is true in the notebook after all snippets."""
    return f"""
assert run.metrics["detections_per_image"] >= 0
assert [row["step"] for row in run.history if row["event"] == "train"] == [1, 2]
from pathlib import Path
assert Path("out.png").is_file() and Path({str(folder)!r}) == Path.cwd()
assert len(found["boxes"]) == 5
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_snippet_runs_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("BOTVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = [nbformat.v4.new_code_cell(text) for text in [*snippets(), checks(tmp_path)]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = "".join(str(output.get("text", output.get("data", ""))) for output in outputs)
    assert "run written to runs/mine" in shown
    assert "no setting is named batch_sise; did you mean batch_size?" in shown
    # Lightning's bar of a notebook, not lines and not a terminal's.
    assert "it/s" in shown or "progress" in shown.lower()
