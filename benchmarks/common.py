"""What every measurement on a server prints first."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psycopg

import pybq


def describe(conn: psycopg.Connection[Any], **more: Any) -> dict[str, Any]:
    """Return, and print, machine, versions, commit and what else is given."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    known = {
        "machine": f"{cpu}, {os.cpu_count()} cores, kernel {pybq.simd()}",
        "load": f"{os.getloadavg()[0]:.2f} before",
        "PostgreSQL": _value(conn, "SELECT version()").partition(" on ")[0],
        "compiler": _value(conn, "SELECT version()").rpartition("compiled by ")[2],
        "pgvector": _value(conn, "SELECT extversion FROM pg_extension WHERE extname = 'vector'"),
        "bq": _value(conn, "SELECT extversion FROM pg_extension WHERE extname = 'bq'"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
        **more,
    }
    for name, value in known.items():
        print(f"{name + ':':<12}{value}")
    print(flush=True)
    return known


def _value(conn: psycopg.Connection[Any], query: str) -> str:
    row = conn.execute(query.encode()).fetchone()
    return "none" if row is None else str(row[0])


def save(path: str | None, **results: Any) -> None:
    """Write everything as JSON, if a path is given."""
    if path is not None:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
