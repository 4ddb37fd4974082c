"""Random changes and queries, against a model that is a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from indexlib import assert_same_order, by_index, check, insert, operand

from pybq import Code, Quantizer

DIM = 6  # few codes, so that many are equal
SEED = 20261121


class IndexMachine(RuleBasedStateMachine):
    """Rules draw only seeds and counts: the data follow from them."""

    conn: psycopg.Connection[Any]

    @initialize(lists=st.sampled_from([1, 5, 200]), rows=st.sampled_from([0, 3, 300]))
    def start(self, lists: int, rows: int) -> None:
        self.model: dict[int, Code | None] = {}
        self.next_id = 0
        self.conn.execute("DROP TABLE IF EXISTS items")
        self.conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, code bqvec({DIM}), other int)")
        self.conn.execute("ALTER TABLE items SET (fillfactor = 50)")
        self.insert(rows, 1)
        self.conn.execute(f"CREATE INDEX items_code ON items USING bq (code) WITH (lists={lists})")

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
        insert(self.conn, vectors, first=self.next_id)
        for code in Quantizer(DIM).encode(vectors):
            self.model[self.next_id] = Code(code)
            self.next_id += 1

    @rule(n=st.integers(1, 50), seed=st.integers(0, 99))
    def insert_and_roll_back(self, n: int, seed: int) -> None:
        with self.conn.transaction(force_rollback=True):
            insert(self.conn, self.vectors(n, seed), first=self.next_id)

    @rule(share=st.sampled_from([0.02, 0.5, 1]), seed=st.integers(0, 99))
    def delete(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        self.conn.execute("DELETE FROM items WHERE id = ANY(%s)", (ids,))
        for i in ids:
            del self.model[i]

    @rule(share=st.sampled_from([0.02, 0.3]), seed=st.integers(0, 99))
    def update(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        code = Code(Quantizer(DIM).encode(self.vectors(1, seed))[0])
        self.conn.execute("UPDATE items SET code = %s WHERE id = ANY(%s)", (code, ids))
        self.model.update(dict.fromkeys(ids, code))

    @rule(share=st.sampled_from([0.02, 0.3]), seed=st.integers(0, 99))
    def update_to_null(self, share: float, seed: int) -> None:
        ids = self.some_ids(share, seed)
        self.conn.execute("UPDATE items SET code = NULL WHERE id = ANY(%s)", (ids,))
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
        self.conn.execute(f"REINDEX INDEX {'CONCURRENTLY' * concurrently} items_code")

    @rule()
    def truncate(self) -> None:
        self.conn.execute("TRUNCATE items")
        self.model.clear()

    @rule(
        operator=st.sampled_from(["<~>", "<=>", "<#>", "<->"]),
        seed=st.integers(0, 99),
        limit=st.sampled_from([1, 10, None]),
    )
    def query(self, operator: str, seed: int, limit: int | None) -> None:
        q = operand(operator, self.vectors(1, seed)[0])
        # distances by the function behind the operator, one pair at a time
        rows = [(i, code) for i, code in self.model.items() if code is not None]
        distances = self.conn.execute(
            f"SELECT array_agg(code {operator} %(q)s ORDER BY n)"
            " FROM unnest(%(codes)s::bqvec[]) WITH ORDINALITY AS c(code, n)",
            {"q": q, "codes": [code.to_text() for _, code in rows]},
        ).fetchone()
        assert distances is not None
        expected = sorted(
            zip((i for i, _ in rows), distances[0] or [], strict=True), key=lambda row: row[1]
        )
        found = by_index(self.conn, operator, q, limit=limit)
        assert_same_order(found, expected[:limit], (operator, limit))

    @rule(seed=st.integers(0, 99))
    def query_all_from_few_lists(self, seed: int) -> None:
        q = operand("<=>", self.vectors(1, seed)[0])
        self.conn.execute("SET bq.iterative_scan = relaxed_order")
        found = by_index(self.conn, "<=>", q, probes=1)
        self.conn.execute("RESET bq.iterative_scan")
        expected = [i for i, code in self.model.items() if code is not None]
        assert sorted(i for i, _ in found) == sorted(expected)

    def teardown(self) -> None:
        check(self.conn, "items_code")


def run(conn: psycopg.Connection[Any], examples: int, steps: int) -> None:
    conn.autocommit = True
    machine = type("BoundMachine", (IndexMachine,), {"conn": conn})
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


def test_random_changes(conn: psycopg.Connection[Any]) -> None:
    run(conn, examples=60, steps=30)


@pytest.mark.slow
def test_many_random_changes(conn: psycopg.Connection[Any]) -> None:
    run(conn, examples=300, steps=50)
