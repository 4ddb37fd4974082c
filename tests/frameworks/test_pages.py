"""The examples of docs/ for LangChain and LlamaIndex run, and print what the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import DOCS, run_page
from shared import Conn


@pytest.mark.autocommit
@pytest.mark.parametrize(
    ("page", "package"),
    [("langchain.md", "langchain_core"), ("llama-index.md", "llama_index.core")],
)
def test_examples_run(
    page: str,
    package: str,
    conn: Conn,
    bq_pgvector: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(package, reason="needs frameworks: make test-frameworks")
    run_page(DOCS / page, conn, tmp_path, monkeypatch, ["python"], more=True)
