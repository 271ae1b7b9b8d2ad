"""The notebooks run from their first cell to the last, and are kept without what came out."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support import BLOCK_NETWORK, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FAMILIES = sorted(path.parent.name for path in ROOT.glob("lightning_vl/papers/*/README.md"))


def test_every_family_has_a_notebook() -> None:
    """Breaks if a paper is added without one, or the page of the notebooks does not name it."""
    assert [path.stem for path in NOTEBOOKS] == FAMILIES
    page = (ROOT / "notebooks" / "README.md").read_text()
    assert all(f"({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    """Breaks if somebody commits a notebook as it was run: outputs make every change unreadable and name their machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count is not None]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a cell fails, with a tenth of the steps; the folder has what a clone of the repository has."""
    for name in ("experiments", "lightning_vl"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        first, _, rest = cell.source.partition("\n")
        if first.startswith("steps = "):
            cell.source = f"steps = {int(first.removeprefix('steps = ')) // 10}\n{rest}"
    monkeypatch.setenv("PYTHONPATH", os.fspath(BLOCK_NETWORK))
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path / "notebooks"}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.output_type == "stream" and "error:" in output.text]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert len(list((tmp_path / "runs" / "notebook").glob("*/*/results.json"))) >= 1
