"""What `make bench` shows, and what it judges by; the run itself: tests/server/test_bench.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("pgvector")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compare
    import compare.data
    import compare.measure
    import compare.report

    yield compare
    for name in [n for n in sys.modules if n.partition(".")[0] in ("compare", "common", "sets")]:
        del sys.modules[name]


@pytest.fixture
def results() -> dict[str, Any]:
    """A system that finds too little for .99, one that is missing, one in process."""

    def at(p50: float, ratio: float) -> dict[str, Any]:
        times = {"p50": p50, "p95": 2 * p50, "p99": 3 * p50, "qps": 1 / p50}
        return {**times, "ratio": ratio, "recall": 0.96}

    def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
        return [{"recall": recall, "qps": qps, "p50": 1 / qps} for recall, qps in points]

    return {
        "about": {
            "machine": "a CPU, 2 cores, kernel avx2",
            "memory": "8 GB",
            "PostgreSQL": "PostgreSQL 18.4",
            "pgvector": "0.8.5",
            "bq": "0.1.0",
            "commit": "abc",
            "started": "2026-11-22",
            "load": "0.10 before",
        },
        "data": {"rows": 1000, "dim": 8, "queries": 20, "k": 10, "seed": 7, "about": "few rows"},
        "effort": {"rounds": 3},
        "reference": "bq",
        "floor": {"": 30e-6, "other": 50e-6},
        "peers": {
            "bq": {
                "kind": "bq",
                "build": {"seconds": 1.5, "peak": 2_000_000, "index": 3_000_000, "table": 0},
                "curve": curve((0.9, 3000), (0.96, 2000)),
                "at": {"0.95": at(0.0005, 1.0), "0.99": {"at most": 0.964}},
                "clients": {"one": 1900.0, "two": 3100.0},
                "filters": {
                    "tenth": {"at": {"0.95": {"at most": 0.5}}},
                    "hundredth": {"at": {"0.95": at(0.0123, 1.0)}},
                },
                "cold": {"dropped": True, "mean": 0.0044},
                "insertion": {"rows per second": 12345.6},
            },
            "gone": {"kind": "in process", "missing": "no module; run pip"},
            "library": {
                "kind": "in process",
                "about": {"library": "lib 1.2"},
                "build": {"seconds": 20.0, "peak": None, "index": 4_000_000},
                "curve": curve((0.96, 9000)),
                "at": {"0.95": at(0.0001, 0.2)},
            },
        },
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_has_every_system(compare: ModuleType, results: dict[str, Any]) -> None:
    lines = compare.report.table(results).splitlines()
    rows = [cells(line) for line in lines if line.startswith("|") and "--" not in line]
    search, cost = rows[1:4], rows[5:8]
    assert [row[0] for row in search] == ["bq", "*gone*, missing", "*library*"]
    assert search[0][1:] == ["0.50", "1.0", "1.5", "1.0", "1,900", "3,100", "finds 0.96", "–"]
    assert search[1][1:] == ["–"] * 8
    assert search[2][1:] == ["0.10", "0.20", "0.30", "0.20", "10,000", "–", "–", "–"]
    assert cost[0][1:] == ["1.5", "2.0", "3.0", "0", "12,346", "finds 0.50", "12", "4.4"]
    assert cost[2][1:] == ["20", "–", "4.0", "–", "–", "–", "–", "–"]
    # every row is as wide as its head
    assert {len(row) for row in rows} == {9}


def test_table_says_why_and_how(compare: ModuleType, results: dict[str, Any]) -> None:
    text = compare.report.table(results)
    assert "gone (missing: no module; run pip)" in text
    for expected in ("1,000 x 8", "kernel avx2", "commit abc", "lib 1.2", "0.050 ms @ other"):
        assert expected in text
    assert "put out of the page cache" in text
    results["peers"]["bq"]["cold"]["dropped"] = False
    assert "page cache as it was" in compare.report.table(results)


def test_table_says_that_the_machine_was_busy(compare: ModuleType, results: dict[str, Any]) -> None:
    assert "busy" not in compare.report.table(results)
    results["about"]["load"] = "1.00 before"
    assert "The machine was busy" in compare.report.table(results)


def test_table_of_an_interrupted_run(compare: ModuleType, results: dict[str, Any]) -> None:
    """Whatever was not measured yet is a dash."""
    del results["floor"]
    results["peers"] = {"bq": {"kind": "bq"}, "failed": {"kind": "bq", "failed": "no: room"}}
    text = compare.report.table(results)
    assert cells(text.splitlines()[2]) == ["bq", *["–"] * 8]
    assert "failed (failed: no: room)" in text


def test_frontier_leaves_out_what_is_beaten(compare: ModuleType) -> None:
    points = [(0.9, 100), (0.95, 120), (0.97, 50), (0.96, 40), (0.99, 10), (0.99, 9)]
    curve = [{"recall": recall, "qps": qps} for recall, qps in points]
    best = [(p["recall"], p["qps"]) for p in compare.report.frontier(curve)]
    assert best == [(0.95, 120), (0.97, 50), (0.99, 10)]


def test_picture_is_drawn(compare: ModuleType, results: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    compare.report.draw(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_between_marks_is_replaced(compare: ModuleType) -> None:
    begin, end = compare.report.BEGIN, compare.report.END
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    once = compare.report.replace_between_marks(text, "new\n")
    assert once == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert compare.report.replace_between_marks(once, "new") == once
    for without in ("", begin, f"{end}\n{begin}"):
        with pytest.raises(ValueError, match="expected the lines"):
            compare.report.replace_between_marks(without, "new")


def test_the_comparison_shows_what_is_published(compare: ModuleType) -> None:
    """Its table is made by `make bench-table`, from figures that are kept beside it."""
    report = compare.report
    made = report.table(json.loads(report.PUBLISHED.read_text()))
    page = report.PAGE.read_text()
    assert report.replace_between_marks(page, made) == page
    assert report.PUBLISHED.with_suffix(".png").exists()


def test_settings_are_chosen_by_time_and_recall(compare: ModuleType) -> None:
    measure = compare.measure
    curve = [{"recall": r, "p50": t} for r, t in ((0.94, 1), (0.95, 3), (0.97, 2), (0.99, 5))]
    assert measure.fastest(curve, 0.95) == {"recall": 0.97, "p50": 2}
    assert measure.fastest(curve, 0.995) is None
    assert measure.paired_ratio([2, 30, 4], [1, 10, 4]) == 2
    assert measure.thin([{"n": n} for n in range(6)], 2) == [{"n": n} for n in (0, 2, 4, 5)]
    assert measure.one_step({"a": 1, "b": 1}, {"a": 1, "b": 2})
    assert not measure.one_step({"a": 1, "b": 1}, {"a": 2, "b": 2})
    assert not measure.one_step({"a": 1}, {"a": 1, "b": 2})


# -- data ---------------------------------------------------------------------------------------


def test_shipped_vectors(compare: ModuleType) -> None:
    data, about = compare.data.load(None, 2000)
    assert data.base.shape == (2000, 384) and data.base.dtype == np.float32
    assert data.queries.shape == (200, 384) and data.new.shape == (compare.data.NEW, 384)
    np.testing.assert_allclose(np.linalg.norm(data.base, axis=1), 1, rtol=1e-5)
    assert about == "2,000 sentences of the demo"


def test_grown_rows_lie_between_near_ones(compare: ModuleType, rng: np.random.Generator) -> None:
    from sets import thicken, unit

    base = unit(rng.standard_normal((300, 4)))
    grown = thicken(base, 500)
    np.testing.assert_array_equal(grown[:300], base)
    np.testing.assert_array_equal(thicken(base, 200), base[:200])
    np.testing.assert_array_equal(thicken(base, 500), grown)  # seeded
    np.testing.assert_allclose(np.linalg.norm(grown, axis=1), 1, rtol=1e-5)
    assert len(np.unique(grown, axis=0)) > 470  # a row may be its own neighbour
    nearest = np.sort(base @ base.T)[:, -11]
    assert ((grown[300:] @ base.T).max(axis=1) > nearest.min()).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_a_file_are_held_out(compare: ModuleType, tmp_path: Path, dtype: Any) -> None:
    rows = np.random.default_rng(1).standard_normal((500, 8)).astype(dtype)
    rows[7] = 0  # has no direction
    np.save(tmp_path / "rows.npy", rows)
    data, about = compare.data.load(tmp_path / "rows.npy", 100_000)
    assert "rows.npy" in about
    parts = [data.base, data.queries, data.new]
    assert [part.dtype for part in parts] == [np.float32] * 3
    assert [len(part) for part in parts] == [399, 50, 50]
    assert len(np.unique(np.vstack(parts), axis=0)) == 499
    again, _ = compare.data.load(tmp_path / "rows.npy", 100_000)
    np.testing.assert_array_equal(again.queries, data.queries)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((500, 2, 2), np.float32), "expected floats of shape"),
        (np.ones((500, 8), np.int32), "expected floats of shape"),
        (np.full((500, 8), np.nan, np.float32), "expected finite values"),
        (np.ones((50, 8), np.float32), "expected 200 rows or more"),
    ],
)
def test_rows_that_cannot_be_compared(
    compare: ModuleType, tmp_path: Path, rows: Any, message: str
) -> None:
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ValueError, match=message):
        compare.data.load(tmp_path / "rows.npy", 1000)


def test_recall_is_of_the_rows_that_the_filter_keeps(
    compare: ModuleType, rng: np.random.Generator
) -> None:
    """Against sorting all rows; with fewer rows than are asked for, those are all."""
    vectors = rng.standard_normal((430, 8)).astype(np.float32)
    data, _ = compare.data._data(vectors[:400], vectors[400:], vectors[:0], "")
    truth = compare.data.Truth(data)
    for column in (None, "tenth", "hundredth"):
        exact = []
        for i, query in enumerate(data.queries):
            order = np.argsort(-(data.base @ query))
            if column is not None:
                order = order[data.column(column)[order] == data.wanted(column, i)]
            exact.append(order[:10].tolist())
        assert truth.recall(column, exact) == 1
        assert truth.recall(column, [ids[:1] * 10 for ids in exact]) < 0.7  # each counts once
        assert truth.recall(column, exact[1:] + exact[:1]) < 0.5
    first = [int(np.argmax(data.base @ q)) for q in data.queries]
    assert truth.recall(None, [[row] for row in first]) == pytest.approx(0.1)
    # near, but not what the filter asks for
    others = [np.argsort(-(data.base @ q)) for q in data.queries]
    others = [o[data.column("tenth")[o] != i % 10][:10].tolist() for i, o in enumerate(others)]
    assert truth.recall("tenth", others) == 0
