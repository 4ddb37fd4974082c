"""The statements of docs/growing.md run, as they would be typed."""

from __future__ import annotations

import re
from pathlib import Path

from shared import Conn, needs_pgvector

PAGE = Path(__file__).parents[2] / "docs" / "growing.md"


@needs_pgvector
def test_sql_runs(conn: Conn) -> None:
    conn.autocommit = True
    examples = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    assert len(examples) == 3
    results = []
    for example in examples:
        for statement in re.sub(r"--.*", "", example).split(";"):
            if statement.strip():
                cursor = conn.execute(statement.encode())
                results += [cursor.fetchall()] if cursor.description else []
    near, of_tenant, (info,), ((recall,),), indexes = results
    assert [id for (id,) in near] == [1, 4]
    assert [id for (id,) in of_tenant] == [1, 2]
    assert info == (1, 496) and recall > 0.9
    assert len(indexes) == 3
    # the one made beforehand was taken, and the last index is whole
    rows = conn.execute(
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index"
        " WHERE indrelid IN ('documents'::regclass, 'documents_9'::regclass)"
        " AND NOT indisprimary ORDER BY 1"
    ).fetchall()
    assert rows == [("documents_9_near", True), ("documents_l2", True), ("documents_near", True)]
