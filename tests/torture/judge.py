"""Is all well?  Indexes say so, answer as a sort does, and no row is lost or gained."""

from __future__ import annotations

from typing import Any

import psycopg
from shared import Conn

SEARCHES = 2  # of each index, with rows of the table as queries
K = 20

COLUMNS = """
    SELECT t.relname, pg_get_indexdef(i.oid, 1, true), o.oprname
    FROM pg_index AS x
    JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid
    JOIN pg_opclass AS c ON c.oid = x.indclass[0]
    JOIN pg_amop AS p ON p.amopfamily = c.opcfamily AND p.amoppurpose = 'o'
        AND p.amoplefttype = p.amoprighttype
    JOIN pg_operator AS o ON o.oid = p.amopopr
    WHERE i.relname = %s AND x.indisvalid
"""


class Judge:
    """Judges indexes by a session of its own."""

    def __init__(self, conn: Conn, indexes: list[str]) -> None:
        self.conn = conn
        self.indexes = indexes
        conn.execute("SET bq.recall = 1")

    def contents(self) -> dict[str, Any]:
        """Number of rows of each table, and a sum of their contents."""
        return {
            table: self.conn.execute(
                f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} AS t"
            ).fetchone()
            for table in {self._columns(i)[0][0] for i in self.indexes}
        }

    def compare(self, before: dict[str, Any]) -> str | None:
        """What is not as it was, if anything."""
        after = self.contents()
        return None if after == before else f"rows were {before}, are {after}"

    def judge(self) -> str | None:
        """What is wrong with an index, if anything."""
        for index in self.indexes:
            try:
                self.conn.execute("SELECT bq_index_check(%s::regclass, true)", (index,))
            except psycopg.errors.UndefinedTable:
                continue
            except psycopg.Error as error:
                return f"bq_index_check of {index}: {error}"
        return self.searches()

    def searches(self) -> str | None:
        """What an index answers that a sort does not, if anything."""
        for index in self.indexes:
            for table, column, operator in self._columns(index):
                complaint = self._search(index, table, column, operator)
                if complaint:
                    return complaint
        return None

    def _columns(self, index: str) -> list[tuple[str, str, str]]:
        return self.conn.execute(COLUMNS, (index,)).fetchall()

    def _search(self, index: str, table: str, column: str, operator: str) -> str | None:
        """Compare distances, not rows: of equal ones, any may come first."""
        queries = self.conn.execute(
            f"SELECT {column}::text, pg_typeof({column})::text FROM {table}"
            f" WHERE {column} IS NOT NULL ORDER BY random() LIMIT {SEARCHES}"
        ).fetchall()
        for text, type_ in queries:
            distance = f"{column} {operator} '{text}'::{type_}"
            statement = f"SELECT {distance} FROM {table} ORDER BY {distance} LIMIT {K}"
            answers = []
            for use in ("off", "on"):
                with self.conn.transaction(force_rollback=True):
                    self.conn.execute(f"SET LOCAL enable_seqscan = {use}")
                    other = "on" if use == "off" else "off"
                    self.conn.execute(f"SET LOCAL enable_indexscan = {other}")
                    plan = "".join(r[0] for r in self.conn.execute(f"EXPLAIN {statement}"))
                    if (index in plan) == (use == "on"):
                        return f"{index}: unexpected plan {plan}"
                    answers.append([r[0] for r in self.conn.execute(statement)])
            if answers[0] != answers[1]:
                return f"{index}: {statement} gave {answers[0]}, by a sort {answers[1]}"
        return None
