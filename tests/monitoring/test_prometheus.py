"""docs/exporter-queries.yaml and docs/grafana-dashboard.json, through the programs they are for.

Needs `prometheus` and `prometheus-postgres-exporter` (or `postgres_exporter`), as Debian has them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from indexlib import random_vectors
from psycopg.conninfo import conninfo_to_dict
from shared import Conn

DOCS = Path(__file__).parents[2] / "docs"


def find(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {names[0]}")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ask: Callable[[], Any], seconds: float = 120) -> Any:
    """Ask until there is an answer."""
    end = time.monotonic() + seconds
    while True:
        try:
            if answer := ask():
                return answer
        except urllib.error.URLError:
            pass
        assert time.monotonic() < end, "no answer"
        time.sleep(0.2)


def read(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return str(response.read().decode())


@pytest.fixture
def documents(conn: Conn, bq_pgvector: None, rng: Any) -> Conn:
    conn.autocommit = True
    conn.execute("CREATE TABLE documents (id int, embedding vector(16))")
    with conn.cursor().copy("COPY documents FROM STDIN") as copy:
        for i, vector in enumerate(random_vectors(rng, 2000, 16)):
            copy.write_row((i, str(vector.tolist())))
    conn.execute("CREATE INDEX ON documents USING bq (embedding vector_cosine_ops)")
    conn.execute("VACUUM ANALYZE documents")
    return conn


@pytest.fixture
def prometheus(documents: Conn, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that asks an exporter every second; its address."""
    programs = [find("postgres_exporter", "prometheus-postgres-exporter"), find("prometheus")]
    exporter, itself = (f"127.0.0.1:{free_port()}" for _ in range(2))
    parts = conninfo_to_dict(documents.info.dsn)
    names = ("host", "port", "user", "dbname", "password")
    dsn = " ".join(f"{name}='{parts[name]}'" for name in names if parts.get(name))
    scrape = {"job_name": "postgres", "static_configs": [{"targets": [exporter]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.json").write_text(json.dumps(config))
    commands = [
        [programs[0], f"--extend.query-path={DOCS / 'exporter-queries.yaml'}",
         f"--web.listen-address={exporter}", "--disable-default-metrics",
         "--disable-settings-metrics"],
        [programs[1], f"--config.file={tmp_path / 'prometheus.json'}",
         f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={itself}"],
    ]  # fmt: skip
    environment = {**os.environ, "DATA_SOURCE_NAME": f"{dsn} sslmode=disable"}
    with open(tmp_path / "log", "wb") as log:
        running = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command in commands
        ]
        yield f"http://{itself}"
    for process in running:
        process.terminate()
        process.wait()


def test_every_panel_has_something_to_show(documents: Conn, prometheus: str) -> None:
    def ask(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(read(f"{prometheus}/api/v1/query?{query}"))
        assert answer["status"] == "success", expression
        return list(answer["data"]["result"])

    def search() -> list[Any]:
        """Rates want queries between two looks."""
        documents.execute("SELECT * FROM documents ORDER BY embedding <=> ("
                          "SELECT embedding FROM documents WHERE id = 1) LIMIT 10")  # fmt: skip
        documents.execute("SELECT pg_stat_force_next_flush()")
        return ask("rate(bq_index_scans_total[20s]) > 0")

    documents.execute("SET enable_seqscan = off; SET enable_sort = off")
    wait_for(search)
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    shown = 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in (
                ("$__rate_interval", "60s"),
                ("$database", ".*"),
                ("$index", ".*"),
            ):
                expression = expression.replace(variable, value)
            found = ask(expression)
            if " == " in expression:
                assert found == []  # of what would be wrong
                continue
            (series,) = found
            assert series["metric"]["indexrelname"] == "documents_embedding_idx"
            shown += 1
    assert shown >= 12
