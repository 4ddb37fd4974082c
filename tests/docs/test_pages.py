"""All examples of docs/ run, the command line and those that need other packages included."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import PAGES, RUN, WITH_EXAMPLES, read_blocks, run_page
from shared import Conn


@pytest.mark.autocommit
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(
    page: Path,
    conn: Conn,
    bq_pgvector: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_page(page, conn, tmp_path, monkeypatch, RUN, more=True)


def test_something_needs_other_packages() -> None:
    """So that it is seen here if these examples are lost."""
    needs = {package for page in PAGES for block in read_blocks(page) for package in block.needs}
    assert needs == {"asyncpg", "psycopg_pool"}
