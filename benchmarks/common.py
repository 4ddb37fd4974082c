"""What measurements on a server share: what they print first, timed statements, comparisons."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
from numpy.typing import NDArray
from sets import QUERIES, K

import pybq
from pybq._loading.copy import HEADER, TRAILER, encode_rows

ROUNDS = 7
BUDGET = 3.0  # seconds for the slowest system in a round, about
EF_SEARCH = (10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 640, 1000)
RERANK = (2, 2.5, 3, 4, 5, 6, 8)
SETTINGS: dict[str, str | int | bool] = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    "max_wal_size": "8GB",
    "jit": False,
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": 0,
    "max_parallel_maintenance_workers": 0,
    "autovacuum": False,
    "fsync": False,
}

Array = NDArray[Any]
Conn = psycopg.Connection[Any]


def copy_bytes(columns: Sequence[tuple[str, Any]]) -> Iterator[bytes]:
    """Arrays as all the bytes of a binary COPY."""
    yield HEADER
    yield from encode_rows(columns)
    yield TRAILER


def describe(conn: Conn, **more: Any) -> dict[str, Any]:
    """Return, and print, machine, versions, commit and what else is given."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    known = {
        "machine": f"{cpu}, {os.cpu_count()} cores, kernel {pybq.simd()}",
        "load": f"{os.getloadavg()[0]:.2f} before",
        "PostgreSQL": str(value(conn, "SELECT version()")).partition(" on ")[0],
        "compiler": str(value(conn, "SELECT version()")).rpartition("compiled by ")[2],
        "pgvector": value(conn, "SELECT extversion FROM pg_extension WHERE extname = 'vector'"),
        "bq": value(conn, "SELECT extversion FROM pg_extension WHERE extname = 'bq'"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
        **more,
    }
    for name, text in known.items():
        print(f"{name + ':':<12}{text}")
    print(flush=True)
    return known


def value(conn: Conn, query: str) -> Any:
    """The first column of the first row; None if there is none."""
    row = conn.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def show_only(conn: Conn, index: str | None, kept: bool = False) -> None:
    """Hide all other indexes of `items` from the planner and, if `kept`, from writers."""
    shown = f"relname = 'items_{index}'"
    ready = f", indisready = {shown}" if kept else ""
    conn.execute(
        f"UPDATE pg_index SET indisvalid = {shown}{ready} FROM pg_class c"
        " WHERE indrelid = 'items'::regclass AND c.oid = indexrelid".encode()
    )


class Statement:
    """A prepared statement with all parameters and results binary."""

    def __init__(self, conn: Conn, name: str, text: str, parameters: list[list[bytes]]) -> None:
        self.pgconn = conn.pgconn
        self.name = name.encode()
        self.text = text
        self.parameters = parameters
        self.pgconn.prepare(self.name, text.encode())

    def __call__(self, i: int) -> list[int]:
        parameters = self.parameters[i % len(self.parameters)]
        result = self.pgconn.exec_prepared(self.name, parameters, [1] * len(parameters), 1)
        if result.status not in (1, 2):
            raise RuntimeError(result.error_message.decode())
        return [
            int.from_bytes(result.get_value(row, 0) or b"", "big") for row in range(result.ntuples)
        ]

    def seconds(self, n: int) -> float:
        """Median time of n executions, beginning with a warm-up of a tenth."""
        for i in range(n // 10):
            self(i)
        times = []
        for i in range(n):
            start = time.perf_counter()
            self(i)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def recall(
    statement: Statement,
    base: Array,
    queries: Array,
    kth: Array,
    times: list[float] | None = None,
    k: int = K,
) -> float:
    """Share of the true neighbours found; the time of each query is added to `times`."""
    hits = 0
    for i, query in enumerate(queries):
        start = time.perf_counter()
        ids = statement(i)
        if times is not None:
            times.append(time.perf_counter() - start)
        hits += int((base[ids] @ query >= kth[i] - 1e-6).sum())
    return hits / (k * len(queries))


class Systems(Protocol):
    """What is compared; a setting is (name of the system, its knobs)."""

    floor: Statement

    def set(self, setting: tuple[Any, ...]) -> Statement:
        """Apply the knobs; the statement to run."""


def point(
    systems: Systems, setting: tuple[Any, ...], base: Array, queries: Array, kth: Array
) -> dict[str, Any]:
    """Recall and a first time of a setting."""
    times: list[float] = []
    found = recall(systems.set(setting), base, queries, kth, times)
    return {"setting": setting, "recall": found, "seconds": statistics.median(times)}


def compare(
    systems: Systems, curve: list[dict[str, Any]], wanted: float, rounds: int = ROUNDS
) -> dict[str, Any]:
    """The systems of the curve in turn, each at its fastest setting of the wanted recall."""
    best = {}
    for name in dict.fromkeys(p["setting"][0] for p in curve):
        own = [p for p in curve if p["setting"][0] == name]
        enough = [p for p in own if p["recall"] >= wanted]
        if not enough:
            print(f"  {name} reaches {max(p['recall'] for p in own):.3f} at most", flush=True)
        else:
            best[name] = _fastest(systems, enough)
    n = _repeats(best.values())
    times = []
    for _ in range(rounds):
        floor = systems.floor.seconds(QUERIES)
        net = {name: systems.set(p["setting"]).seconds(n) - floor for name, p in best.items()}
        times.append({"floor": floor, **net})
    for name, p in best.items():
        net_times = sorted(r[name] for r in times)
        print(
            f"  {name:9} {p['setting'][1:]!s:>12}  recall {p['recall']:.3f}"
            f"  net {statistics.median(net_times) * 1e6:7.0f} us"
            f" ({net_times[0] * 1e6:.0f} to {net_times[-1] * 1e6:.0f})"
        )
    return {"wanted": wanted, "best": best, "rounds": times}


def _fastest(systems: Systems, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The sweep ran each once: the fastest ones of it again, in turn."""
    few = sorted(points, key=lambda p: float(p["seconds"]))[:5]
    n = _repeats(few)
    again = [min(systems.set(p["setting"]).seconds(n) for _ in range(2)) for p in few]
    return few[int(np.argmin(again))]


def _repeats(points: Iterable[dict[str, Any]]) -> int:
    """So many executions that the slowest takes about BUDGET; the same queries for all."""
    slowest = max((p["seconds"] for p in points), default=0)
    return QUERIES if slowest * QUERIES < BUDGET else max(20, int(BUDGET / slowest))


def paired_ratio(comparison: dict[str, Any], slow: str, fast: str) -> float | None:
    """Median of the rounds' ratios; None where one did not reach the recall."""
    if not {slow, fast} <= comparison["best"].keys():
        return None
    return float(statistics.median(r[slow] / r[fast] for r in comparison["rounds"]))


def report(what: str, figure: float, target: str, met: bool) -> dict[str, Any]:
    print(f"{'  ' if met else '! '}{what:<58} {figure:8.3f}  target {target}", flush=True)
    return {"what": what, "figure": figure, "target": target, "met": met}


def save(path: str | None, **results: Any) -> None:
    """Write everything as JSON, if a path is given."""
    if path is not None:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
