"""Tables whose indexes are damaged: every kind of page, in several states of life."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from shared import Conn

# of a number, anywhere and at any time the same vector; around 23 centres
SETUP = """
CREATE EXTENSION bq;
CREATE EXTENSION vector;
CREATE EXTENSION bq_pgvector;
CREATE FUNCTION make_vector(id int, dim int) RETURNS real[] IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg((cos(j * (id % 23)) + 0.5 * sin(j * 1.7 * id))::real)
    FROM generate_series(1, dim) AS j
$$ LANGUAGE sql SET search_path = public, pg_catalog;
"""

Connect = Callable[[], Conn]


@dataclass(frozen=True)
class Kind:
    """A table and its index."""

    name: str
    type: str
    dim: int
    rows: int
    lists: int = 0
    opclass: str = ""
    filters: str = ""
    transform: int = 0
    # before the rows come, so that all are staged and VACUUM splits what it finds
    index_first: bool = False
    split: bool = False

    @property
    def index(self) -> str:
        return f"{self.name}_x"

    def value(self, number: str) -> str:
        """SQL for the value of a row."""
        vector = f"make_vector({number}, {self.dim})"
        if self.type == "bqvec":
            return f"bq_encode({vector}, {self.transform})"
        return f"{vector}::{self.type}"

    def distances(self, number: int) -> list[str]:
        """SQL for what a query can order by."""
        vector = f"make_vector({number}, {self.dim})"
        if self.type == "bqvec":
            query = f"(SELECT bq_query({vector}, {self.transform}))"
            code = f"(SELECT bq_encode({vector}, {self.transform}))"
            return [f"x <~> {code}", f"x <=> {query}", f"x <#> {query}", f"x <-> {query}"]
        metric = self.opclass.split("_")[1]
        operator = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}[metric]
        return [f"x {operator} (SELECT {vector}::{self.type}({self.dim}))"]

    def insert(self, first: int, rows: int) -> str:
        return (
            f"INSERT INTO {self.name} SELECT i, {self.value('i')}, nullif(i % 7, 0), 'l' || i % 5"
            f" FROM generate_series({first}, {first + rows - 1}) AS i"
        )

    def create(self, connect: Connect) -> None:
        with contextlib.closing(connect()) as conn:
            self._create(conn, connect)

    def _create(self, conn: Conn, connect: Connect) -> None:
        def run(statement: str) -> None:
            conn.execute(cast(Any, statement))

        run("SET maintenance_work_mem = '64MB'; SET max_parallel_maintenance_workers = 0")
        run(f"DROP TABLE IF EXISTS {self.name}")
        run(
            f"CREATE TABLE {self.name} (id int, x {self.type}({self.dim}), other int, label text)"
            " WITH (autovacuum_enabled = off)"
        )
        index = f"CREATE INDEX {self.index} ON {self.name} USING bq (x {self.opclass}"
        index += f"{self.filters})" + (f" WITH (lists = {self.lists})" if self.lists else "")
        if self.index_first:
            run(index)
            run(self.insert(1, self.rows))
        else:
            run(self.insert(1, self.rows))
            run(index)
            # blocks with free slots, in free chains, and some that are staged
            run(f"DELETE FROM {self.name} WHERE id % 5 = 1 OR id BETWEEN 40 AND 200")
            run(f"VACUUM (INDEX_CLEANUP ON) {self.name}")
            run(self.insert(self.rows + 1, self.rows // 8))
        if self.split:
            # the snapshot of another session keeps the old chains
            with contextlib.closing(connect()) as reader:
                reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                reader.execute("SELECT 1")
                run(f"VACUUM (INDEX_CLEANUP ON) {self.name}")
                reader.execute("ROLLBACK")
            run(self.insert(self.rows + 1, 40))
        run(f"ANALYZE {self.name}")


KINDS = (
    Kind("flat", "bqvec", 32, 600, lists=1),
    Kind("codes", "bqvec", 40, 3000, lists=20, filters=", other, label", transform=3),
    Kind("grown", "bqvec", 32, 3000, lists=12, index_first=True),
    Kind("split", "bqvec", 24, 3000, lists=12, filters=", id", index_first=True, split=True),
    Kind("long", "bqvec", 2100, 150, lists=2),  # more than one part of staged rows in a block
    Kind("cosine", "vector", 24, 2000, lists=12, opclass="vector_cosine_ops", filters=", other"),
    Kind("l2", "halfvec", 600, 500, lists=6, opclass="halfvec_l2_ops"),  # blocks left half read
    Kind("ip", "vector", 16, 1500, lists=40, opclass="vector_ip_ops", filters=", label, id"),
    Kind("vsplit", "halfvec", 16, 2000, 8, "halfvec_cosine_ops", index_first=True, split=True),
)
