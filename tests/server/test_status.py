"""Table.status: what the database knows, and drift since the decision."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from shared import Conn
from typer.testing import CliRunner

import pybq
from pybq._choice.statistics import Statistics

DIM = 32


def make_flat(rng: np.random.Generator, n: int) -> np.ndarray:
    """Coordinates that four levels describe well: the axes are chosen."""
    return np.tanh(4 * rng.standard_normal((n, DIM))).astype(np.float32)


def make_uneven(rng: np.random.Generator, n: int) -> np.ndarray:
    """Coordinates of very different variances: rotation is chosen."""
    return (rng.standard_normal((n, DIM)) * np.geomspace(0.05, 5, DIM)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_statistics_of_the_decision_are_kept(
    conn: Conn, rng: np.random.Generator, metric: Any
) -> None:
    table = pybq.Table.create(conn, "items", DIM, metric, store=None)
    first, second = make_flat(rng, 1000), make_uneven(rng, 500)
    table.ingest(range(1000), first)
    table.ingest(range(1000, 1500), second)
    expected = Statistics(DIM, normalize=metric == "cosine")
    expected.update(first)
    row = conn.execute("SELECT (decided_statistics).* FROM bq_columns").fetchone()
    assert row is not None
    kept = Statistics.from_row(row, expected.normalize)
    assert kept.count == 1000
    np.testing.assert_allclose(kept.mean, expected.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kept.m2, expected.m2, rtol=1e-9)


def test_rows_of_another_kind_call_for_another_choice(conn: Conn, rng: np.random.Generator) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    assert table.status().drift is None
    table.ingest(range(1000), make_flat(rng, 1000))
    status = table.status()
    assert status.transform == 0
    drift = status.drift
    assert drift is not None and not drift.better
    assert (drift.mean_shift, drift.spread_shift) == (0, 0)
    assert "drift" not in str(status)  # nothing new to tell

    table.ingest(range(1000, 2000), make_flat(rng, 1000))
    same = table.status().drift
    assert "the original axes would be chosen again" in str(table.status())
    assert same is not None and not same.better
    assert same.mean_shift is not None and 0 < same.mean_shift < 0.1

    table.ingest(range(2000, 20_000), make_uneven(rng, 18_000))
    status = table.status()
    drift = status.drift
    assert drift is not None and drift.better and drift.count == 20_000
    assert drift.spread_shift is not None and drift.spread_shift > 0.5
    assert drift.f_rotate > drift.f_axis
    assert "another choice would now be better: rotate" in drift.text
    assert "pybq reencode" in str(status)
    assert status.decided_count == 1000 and status.transform == 0


def test_rows_are_those_that_are_left(
    conn: Conn, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, transform=0)
    assert (table.status().row_count, table.status().count) == (0, 0)
    table.ingest(range(2000), make_flat(rng, 2000))
    assert "items: 2,000 rows x 32" in str(table.status())
    assert "statistics" not in str(table.status())
    conn.execute("DELETE FROM items WHERE id >= 101")
    status = table.status()
    assert (status.row_count, status.row_count_exact, status.count) == (101, True, 2000)
    assert "items: 101 rows x 32" in str(status)
    assert "statistics: of 2,000 vectors ingested so far" in str(status)

    # large tables: as the planner has it, once it knows something
    monkeypatch.setattr("pybq._catalog.size.MAX_COUNTED_NBYTES", 0)
    assert (table.status().row_count, table.status().row_count_exact) == (101, True)
    conn.execute("ANALYZE items")
    conn.execute("DELETE FROM items WHERE id >= 50")
    status = table.status()
    assert (status.row_count, status.row_count_exact) == (101, False)
    assert "items: about 101 rows x 32" in str(status)


def test_who_may_not_read_the_table_learns_no_number(conn: Conn, rng: np.random.Generator) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, transform=0)
    table.ingest(range(100), make_flat(rng, 100))
    with conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE regress_bq_writer")
        conn.execute("GRANT INSERT ON items TO regress_bq_writer")
        conn.execute("SET LOCAL ROLE regress_bq_writer")
        status = table.status()
    assert status.row_count is None and "items: unknown rows x 32" in str(status)


def test_command_shows_drift(
    conn: Conn, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pybq._cli.app import app

    table = pybq.Table.create(conn, "items", DIM, store=None)
    table.ingest(range(1000), make_flat(rng, 1000))
    table.ingest(range(1000, 20_000), make_uneven(rng, 19_000))
    conn.commit()
    monkeypatch.setenv("PYBQ_DSN", conn.info.dsn)
    answer = json.loads(CliRunner().invoke(app, ["status", "items", "--json"]).output)
    assert answer["drift"]["better"] is True
    assert answer["drift"]["f_rotate"] > answer["drift"]["f_axis"]
    assert "drift: " in CliRunner().invoke(app, ["status", "items"]).output
