"""The notebooks of docs/ run as they are, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from pages import DOCS

NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))

# Of each: words of its last output, or of one on the way, that say that it did what it tells of.
TELLS = {
    "axes": ["14.8 times smaller", "rotated"],
    "search": ["definitions: 10,000 rows x 384 dimensions", "?"],
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> str:
    """All that is printed, or returned, as text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    text = outputs(notebook)
    for words in TELLS[path.stem]:
        assert words in text, words
