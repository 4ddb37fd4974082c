"""The demo, and the data that comes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.once

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DEMO)
    import demo

    return demo


def test_demo_runs_and_keeps_its_promise(
    request: pytest.FixtureRequest, tmp_path: Path, demo: ModuleType
) -> None:
    if request.config.getoption("dsn") or request.config.getoption("postgres") != 18:
        pytest.skip("the demo starts a server of its own, PostgreSQL 18")
    result = subprocess.run(
        [sys.executable, DEMO / "demo.py"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in ("gin or vodka and lime juice", "recall@10", "✓ by the index", "rotat"):
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("codes", "indexed", "status"), [(0.85, 0.975, 0), (0.85, 0.969, 1), (0.82, 0.99, 1)]
)
def test_exit_status_tells_whether_recall_is_as_promised(
    demo: ModuleType, codes: float, indexed: float, status: int
) -> None:
    assert demo.show_verdict({"codes alone": codes, "by the index": indexed}) == status


def test_recall_counts_the_true_neighbours(demo: ModuleType) -> None:
    truth = np.array([[1, 2], [3, 4]])
    answers = {1: [1, 5], 3: [4, 3]}
    searches = {"half": lambda q: answers[q], "none": lambda q: [7, 8]}
    results = demo.measure(searches, np.array([1, 3]), truth)
    assert results["half"][0] == 0.75
    assert results["none"][0] == 0
    assert results["half"][1] > 0


def test_data_is_as_its_readme_says(demo: ModuleType) -> None:
    data = demo.glosses.load()
    assert data.vectors.shape == (len(data.texts), 384) == (10_000, 384)
    assert data.queries.shape == (len(data.query_texts), 384) == (200, 384)
    np.testing.assert_allclose(np.linalg.norm(data.vectors, axis=1), 1, rtol=1e-5)
    assert len(set(data.texts) | set(data.query_texts)) == 10_200  # held out
    assert all(40 <= len(text) <= 160 for text in data.texts)
    assert "Princeton University" in (DEMO / "data" / "LICENSE-WordNet").read_text()
