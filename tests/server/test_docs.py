"""Examples of docs/ in Python and SQL run, and print what the page says.

growing.md has test_growing.py, encoding.md tests/frames. The command line, and what needs packages
that `make test` does not install, is run by tests/docs, with all the rest once more.
"""

from __future__ import annotations

import html
import runpy
from pathlib import Path

import pytest
from pages import DOCS, NOT_RUN, PAGES, RUN, WITH_EXAMPLES, read_blocks, run_page
from shared import Conn


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_run_or_say_why_not(page: Path) -> None:
    for block in read_blocks(page):
        if block.language not in RUN:
            assert NOT_RUN.match(block.comment), f"{page.name}, line {block.line}"


@pytest.mark.once
@pytest.mark.autocommit
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(
    page: Path,
    conn: Conn,
    bq_pgvector: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_page(page, conn, tmp_path, monkeypatch, ["python", "sql"], more=False)


# What comments of functions say that are called by the system only.
INTERNAL = (
    "I/O",
    "adjust ",
    "aggregate ",
    "convert ",
    "handler of ",
    "hash",
    "how a bq index ",
    "implementation of ",
    "less-equal-greater",
    "trigger of ",
)


@pytest.mark.once
def test_the_reference_of_sql_leaves_out_what_the_system_calls(
    conn: Conn, bq_pgvector: None
) -> None:
    """And nothing else: each function, operator, class and setting has its line."""
    path = DOCS / "tools" / "sql_reference.py"
    names = runpy.run_path(str(path), run_name="sql_reference")
    conn.execute("SELECT bq_simd()")
    text = html.unescape("\n".join(names["write"](conn))).replace("\\", "")
    functions = conn.execute(
        """SELECT p.oid::regprocedure::text, p.proname, obj_description(p.oid, 'pg_proc')
        FROM pg_proc AS p JOIN pg_depend AS d ON d.objid = p.oid AND d.deptype = 'e'
        JOIN pg_extension AS e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_proc'::regclass AND e.extname IN ('bq', 'bq_pgvector')"""
    ).fetchall()
    assert len(functions) > 80
    for signature, name, comment in functions:
        internal = comment.startswith(INTERNAL)
        assert internal != (f"`{name}(" in text), signature
        assert internal or comment in text, signature
    for kind in ("`bqvec <~> bqvec`", "`halfvec_cosine_ops`", "`bq.recall`", "`bq_columns`"):
        assert kind in text
