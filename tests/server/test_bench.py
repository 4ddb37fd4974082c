"""`make bench` on few rows: two servers, peers that fail, interruptions."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psycopg
import pytest

pytest.importorskip("pgvector")

pytestmark = pytest.mark.once

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {"build", "curves", "clients", "filters", "cold", "insertion"}


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that runs it, with less to do than even --quick has."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    main = importlib.import_module("compare.__main__")
    measure = importlib.import_module("compare.measure")
    few = {"passes": 2, "rounds": 2, "seconds": 0.001, "every": 12, "inserted": 200}
    monkeypatch.setattr(main, "QUICK", dataclasses.replace(main.QUICK, **few))
    monkeypatch.setattr(measure, "CLIENT_SECONDS", 0.02)
    # drawn by tests/unit/test_bench.py
    monkeypatch.setattr(main.report, "draw", lambda results, path: path.touch())
    yield main
    for name in [n for n in sys.modules if n.partition(".")[0] in ("compare", "common", "sets")]:
        del sys.modules[name]


@pytest.fixture
def rows(tmp_path: Path, rng: np.random.Generator) -> Path:
    centres = rng.standard_normal((20, 16))
    vectors = centres[rng.integers(0, 20, 2500)] + rng.standard_normal((2500, 16))
    np.save(tmp_path / "rows.npy", vectors.astype(np.float32))
    return tmp_path / "rows.npy"


def test_all_parts_on_two_servers(
    main: ModuleType,
    rows: Path,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    library = main.LIBRARIES[-1]()
    library.module = "no_such_module"
    monkeypatch.setattr(main, "LIBRARIES", [lambda: library])
    sql_peers = main.sql_peers

    def one_fails(dsn: str, schema: str, name: str = "") -> list[Any]:
        peers = sql_peers(dsn, schema, name)
        for peer in peers:
            if peer.name == "pgvector IVFFlat, vector":
                peer.index = "ivfflat (embedding no_such_ops)"
        return list(peers)

    monkeypatch.setattr(main, "sql_peers", one_fails)
    names = ["bq, halfvec", "exact scan, vector", "IVFFlat", library.name, "diskann"]
    arguments = ["--quick", "--data", str(rows), "--out", str(tmp_path), "--peers", *names]
    arguments += ["--postgres", str(request.config.getoption("postgres"))]
    nowhere = f"nowhere=host={tmp_path} dbname=postgres"
    status = main.main([*arguments, "--server", f"second={server}", "--server", nowhere])
    assert status == 1  # one failed

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"].keys() == PARTS
    peers = results["peers"]
    assert "no_such_ops" in peers.pop("pgvector IVFFlat, vector")["failed"]
    assert "no_such_module" in peers.pop(library.name)["missing"]
    assert "vectorscale" in peers.pop("pgvectorscale diskann, vector @ second")["missing"]
    for name in [name for name in peers if name.endswith("@ nowhere")]:
        assert "connection" in peers.pop(name)["failed"]
    here = {"bq, halfvec", "exact scan, vector"}
    assert peers.keys() == {*here, "bq, halfvec @ second"}

    for name, peer in peers.items():
        assert {"kind", "about", "build", "curve", "at", "filters", "insertion"} <= peer.keys(), (
            name
        )
        assert peer["clients"]["one"] > 0 and peer["clients"]["two"] > 0
        assert peer["build"]["table"] > 0
        assert peer["insertion"]["rows per second"] > 0
        for column in ("tenth", "hundredth"):
            assert all(0 < p["recall"] <= 1 for p in peer["filters"][column]["curve"])
        # the second server is somebody's: it is not restarted
        assert ("cold" in peer) == (not peer["server"])
        for point in peer["curve"]:
            assert len(point["passes"]) == 2
            assert 0 < point["p50"]
    exact = peers["exact scan, vector"]
    assert [p["recall"] for p in exact["curve"]] == [1]
    for column in ("tenth", "hundredth"):
        assert [p["recall"] for p in exact["filters"][column]["curve"]] == [1]
    for name in ("bq, halfvec", "bq, halfvec @ second"):
        assert peers[name]["build"]["index"] > 0
        assert peers[name]["build filtered"]["filtered"] > peers[name]["build"]["index"]
        assert peers[name]["build filtered"]["index"] == 0  # replaced
        assert max(p["recall"] for p in peers[name]["curve"]) > 0.95
        assert peers[name]["at"]["0.95"]["ratio"] > 0
    assert peers["bq, halfvec"]["at"]["0.95"]["ratio"] == 1
    if sys.platform == "linux":
        assert peers["bq, halfvec"]["build"]["peak"] > 100_000

    assert (tmp_path / "curves.png").exists()
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in peers)
    assert "no_such_module" in table and "no_such_ops" in table
    with psycopg.connect(server) as conn:
        left = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'bq_compare%'")
        assert left.fetchall() == []


def test_an_interrupted_run_keeps_what_it_had(
    main: ModuleType, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(run: Any) -> None:
        run.of("bq, halfvec")["curve"] = []
        raise KeyboardInterrupt

    monkeypatch.setitem(main.PARTS, "curves", interrupt)
    arguments = ["--quick", "--data", str(rows), "--out", str(tmp_path), "--peers", "bq, halfvec"]
    assert main.main(arguments) == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"].keys() == {"build"}
    assert results["peers"]["bq, halfvec"]["build"]["index"] > 0
    assert "bq, halfvec" in (tmp_path / "table.md").read_text()


def test_a_process_that_is_gone_fails_its_peer_only(
    main: ModuleType, rows: Path, tmp_path: Path
) -> None:
    worker_module = sys.modules["compare.worker"]
    data, _ = main.sets_.load(rows, 1000)
    data.save(tmp_path)
    worker = worker_module.Worker(tmp_path, "peer")
    try:
        worker.begin("call", "nobody", "ask")
        with pytest.raises(worker_module.Failed, match="KeyError: 'nobody' .*worker.py, line"):
            worker.end()
        os.kill(worker._process.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(worker_module.Failed, match="ended with status -9"):
                worker.call("call", "nobody", "ask")
    finally:
        worker.stop()


def test_mistakes_are_said_at_once(
    main: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["--data", str(tmp_path / "none.npy")]) == 2
    assert "none.npy" in capsys.readouterr().err
    for server in ("name", "dbname=postgres", "=host=localhost"):
        with pytest.raises(SystemExit):
            main.main(["--server", server])
        assert "expected --server NAME=DSN" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["--rows", "ten"])
