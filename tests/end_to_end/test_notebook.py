"""docs/examples/first_run.ipynb runs as a reader would run it, on a few images."""

import os
from pathlib import Path

import nbformat
import pytest
from helpers.images import write_classes
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "first_run.ipynb"
CLASSES = {"ant": 24, "bee": 24, "cow": 24}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)


def test_it_is_stored_without_outputs_in_short_cells(notebook):
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in codes)
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 10
    assert "first_run.ipynb" in (NOTEBOOK.parent / "README.md").read_text()


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    write_classes(tmp_path / "images", CLASSES)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = [outputs(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert not any("\x1b" in text or "UserWarning" in text for text in printed)
    assert "{'train': 58, 'val': 14}" in printed[1]
    assert "image/png" in printed[2]
    assert "image/png" in printed[3]
    assert "image/png" in printed[5]
    assert "report.html" in printed[5]
    assert "nn: " in printed[6]
    assert "torch.Size([16, 192])" in printed[7]
    assert {"shards", "first-run", "encoder"} <= set(os.listdir(tmp_path))


def outputs(cell) -> str:
    """Return the text of all outputs, and the media types of what is displayed."""
    texts = [output.get("text", "") for output in cell.outputs]
    shown = [f"{kind} {value}" for output in cell.outputs for kind, value in output.get("data", {}).items()]
    return "\n".join([*texts, *shown])
