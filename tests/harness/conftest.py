"""One server for both harnesses, reached as their clients do; the demo's sentences as data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from harnesslib import PYTHON, ROOT
from psycopg.conninfo import conninfo_to_dict

import pybq


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    if not PYTHON.exists():
        pytest.skip("run by make test-harness, which installs the harnesses")


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    """Variables of the environment that lead libpq to a server."""
    with pybq.serve() as server:
        found = conninfo_to_dict(server.dsn)
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        yield {name: str(found[key]) for key, name in names.items() if found.get(key)}


@pytest.fixture(scope="session")
def sentences() -> tuple[Any, Any, Any]:
    """Rows, queries that are not among them, and the nearest hundred rows of each by cosine."""
    sys.path.append(str(ROOT / "demo"))
    import glosses

    found = glosses.load()
    return found.vectors, found.queries, found.exact(100)
