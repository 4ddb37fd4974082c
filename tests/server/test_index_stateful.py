"""Random changes and queries, against a model that is a dictionary."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from indexlib import (
    CODES,
    HALF_IP,
    L2,
    Column,
    assert_same_order,
    by_index,
    check,
    insert,
    prepare,
)
from shared import Conn

DIM = 6  # few codes, so that many are equal
SEED = 20261121


class IndexMachine(RuleBasedStateMachine):
    """Rules draw only seeds and counts: the data follow from them."""

    conn: Conn
    column: Column

    @initialize(lists=st.sampled_from([1, 5, 200]), rows=st.sampled_from([0, 3, 300]))
    def start(self, lists: int, rows: int) -> None:
        self.model: dict[int, Any] = {}
        self.next_id = 0
        self.conn.execute("DROP TABLE IF EXISTS items")
        column = f"{self.column.name} {self.column.type}({DIM})"
        self.execute(f"CREATE TABLE items (id int PRIMARY KEY, {column}, other int)")
        self.conn.execute("ALTER TABLE items SET (fillfactor = 50)")
        self.insert(rows, 1)
        index = f"{self.column.index} ON items USING bq ({self.column.key})"
        self.execute(f"CREATE INDEX {index} WITH (lists={lists})")

    def execute(self, statement: str, parameters: Any = None) -> Any:
        return self.conn.execute(cast(Any, statement), parameters)

    def vectors(self, n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        rng = np.random.default_rng((SEED, seed))
        vectors = rng.standard_normal((n, DIM)) * rng.choice([0, 0.5, 1, 1000], (n, 1))
        return vectors.astype(np.float32)

    def some_ids(self, share: float, seed: int) -> list[int]:
        rng = np.random.default_rng((SEED, seed))
        return [i for i in self.model if rng.random() < share]

    @rule(n=st.integers(1, 200), seed=st.integers(0, 99))
    def insert(self, n: int, seed: int) -> None:
        vectors = self.vectors(n, seed)
        insert(self.conn, vectors, first=self.next_id, column=self.column)
        for value in self.column.values(vectors):
            self.model[self.next_id] = value
            self.next_id += 1

    @rule(n=st.integers(1, 50), seed=st.integers(0, 99))
    def insert_and_roll_back(self, n: int, seed: int) -> None:
        with self.conn.transaction(force_rollback=True):
            vectors = self.vectors(n, seed)
            insert(self.conn, vectors, first=self.next_id, column=self.column)

    @rule(share=st.sampled_from([0.02, 0.5, 1]), seed=st.integers(0, 99))
    def delete(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        self.conn.execute("DELETE FROM items WHERE id = ANY(%s)", (ids,))
        for i in ids:
            del self.model[i]

    @rule(share=st.sampled_from([0.02, 0.3]), seed=st.integers(0, 99))
    def update(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        (value,) = self.column.values(self.vectors(1, seed))
        self.execute(f"UPDATE items SET {self.column.name} = %s WHERE id = ANY(%s)", (value, ids))
        self.model.update(dict.fromkeys(ids, value))

    @rule(share=st.sampled_from([0.02, 0.3]), seed=st.integers(0, 99))
    def update_to_null(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        self.execute(f"UPDATE items SET {self.column.name} = NULL WHERE id = ANY(%s)", (ids,))
        self.model.update(dict.fromkeys(ids, None))

    @rule(share=st.sampled_from([0.1, 1]), seed=st.integers(0, 99))
    def update_another_column(self, share: float, seed: int) -> None:
        self.conn.execute(
            "UPDATE items SET other = other + 1 WHERE id = ANY(%s)", (self.some_ids(share, seed),)
        )

    @rule(command=st.sampled_from(["VACUUM items", "VACUUM (INDEX_CLEANUP ON) items"]))
    def vacuum(self, command: str) -> None:
        self.conn.execute(command)  # type: ignore[call-overload]

    @rule(concurrently=st.booleans())
    def reindex(self, concurrently: bool) -> None:
        self.conn.execute(f"REINDEX INDEX {'CONCURRENTLY' * concurrently} {self.column.index}")

    @rule()
    def truncate(self) -> None:
        self.conn.execute("TRUNCATE items")
        self.model.clear()

    @rule(
        number=st.integers(0, 3),
        seed=st.integers(0, 99),
        limit=st.sampled_from([1, 10, None]),
    )
    def query(self, number: int, seed: int, limit: int | None) -> None:
        name, operators = self.column.name, self.column.operators
        operator = operators[number % len(operators)]
        q = self.column.operand(operator, self.vectors(1, seed)[0])
        # distances by the function behind the operator, one pair at a time
        rows = [(i, value) for i, value in self.model.items() if value is not None]
        distances = self.execute(
            f"SELECT array_agg({name} {operator} %(q)s ORDER BY n)"
            f" FROM unnest(%(values)s::{self.column.type}[]) WITH ORDINALITY AS c({name}, n)",
            {"q": q, "values": [value.to_text() for _, value in rows]},
        ).fetchone()
        assert distances is not None
        expected = sorted(
            zip((i for i, _ in rows), distances[0] or [], strict=True), key=lambda row: row[1]
        )
        found = by_index(self.conn, operator, q, limit=limit, column=self.column)
        assert_same_order(found, expected[:limit], (operator, limit))

    @rule(seed=st.integers(0, 99))
    def query_all_from_few_lists(self, seed: int) -> None:
        operator = self.column.operators[-1]
        q = self.column.operand(operator, self.vectors(1, seed)[0])
        self.conn.execute("SET bq.iterative_scan = relaxed_order")
        found = by_index(self.conn, operator, q, probes=1, column=self.column)
        self.conn.execute("RESET bq.iterative_scan")
        expected = [i for i, value in self.model.items() if value is not None]
        assert sorted(i for i, _ in found) == sorted(expected)

    def teardown(self) -> None:
        check(self.conn, self.column.index)


def run(conn: Conn, column: Column, examples: int, steps: int) -> None:
    conn.autocommit = True
    prepare(conn, column)
    machine = type("BoundMachine", (IndexMachine,), {"conn": conn, "column": column})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# by these every vector has a distance, the zero vector, too
each_column = pytest.mark.parametrize(
    "column",
    [CODES, L2, HALF_IP],
    ids=lambda column: column.type,
)


@each_column
def test_random_changes(conn: Conn, column: Column) -> None:
    run(conn, column, examples=60 if column == CODES else 20, steps=30)


@pytest.mark.slow
@each_column
def test_many_random_changes(conn: Conn, column: Column) -> None:
    run(conn, column, examples=120 if column == CODES else 40, steps=50)
