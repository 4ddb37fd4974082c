"""benchmarks/vectordb_bench, run by VectorDBBench itself (make test-harness): its command, with our
own data; and the client as its cases with filters use it, which take downloaded data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from harnesslib import BUILD, PYTHON, ROOT, K, run

COMMAND = BUILD / "bin" / "vectordbbench"
NAME, FOLDER = "glosses", "demo"


@pytest.fixture(scope="session", autouse=True)
def client(harness: None) -> None:
    """Ours among the clients of the harness; a second time changes nothing."""
    install = ROOT / "benchmarks" / "vectordb_bench" / "install.py"
    for _ in range(2):
        run(PYTHON, install, cwd=BUILD, env={})


@pytest.fixture
def environment(server: dict[str, str], sentences: Any, tmp_path: Path) -> dict[str, str]:
    """Data in the files that the harness reads, and where it keeps what it finds."""
    rows, queries, nearest = sentences
    folder = tmp_path / "data" / NAME / FOLDER
    folder.mkdir(parents=True)
    ids = range(len(rows))
    pd.DataFrame({"id": ids, "emb": list(rows)}).to_parquet(folder / "train.parquet")
    pd.DataFrame({"id": range(len(queries)), "emb": list(queries)}).to_parquet(
        folder / "test.parquet"
    )
    pd.DataFrame({"id": range(len(queries)), "neighbors_id": list(nearest)}).to_parquet(
        folder / "neighbors.parquet"
    )
    return {
        **server,
        "DATASET_LOCAL_DIR": str(tmp_path / "data"),
        "RESULTS_LOCAL_DIR": str(tmp_path / "results"),
        "LOG_LEVEL": "INFO",
    }


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("recall", [0.9, 0.99])
def test_recall_is_what_was_asked_for(
    environment: dict[str, str], sentences: Any, tmp_path: Path, kind: str, recall: float
) -> None:
    rows, _, _ = sentences
    options = {
        "case-type": "PerformanceCustomDataset",
        "custom-case-name": "demo",
        "custom-dataset-name": NAME,
        "custom-dataset-dir": FOLDER,
        "custom-dataset-size": len(rows),
        "custom-dataset-dim": rows.shape[1],
        "custom-dataset-metric-type": "COSINE",
        "custom-dataset-file-count": 1,
        "num-concurrency": "1,2",
        "concurrency-duration": 3,
        "k": K,
        "host": environment["PGHOST"],
        "user-name": environment["PGUSER"],
        "column-type": kind,
        "recall": recall,
        "max-parallel-maintenance-workers": 0,
        "load-concurrency": 1,
    }
    command = [part for name, value in options.items() for part in (f"--{name}", value)]
    said = run(COMMAND, "bq", *command, cwd=tmp_path, env=environment)

    files = list((tmp_path / "results").rglob("*.json"))
    assert len(files) == 1, said
    (result,) = json.loads(files[0].read_text())["results"]
    figures = result["metrics"]
    print(
        f"\nVectorDBBench, {kind}, recall {recall}: found {figures['recall']:.3f}, "
        f"{figures['qps']:,.0f} queries/s of {figures['conc_num_list']} clients "
        f"{figures['conc_qps_list']}, p99 {1000 * figures['serial_latency_p99']:.2f} ms, "
        f"load {figures['load_duration']:.1f} s"
    )
    assert figures["qps"] > 0, said
    assert figures["recall"] > recall - 0.03, said


FILTERED = """
import json, sys
import numpy as np
from pydantic import SecretStr
from vectordb_bench.backend.clients import DB, MetricType
from vectordb_bench.backend.filter import LabelFilter, NewIntFilter, non_filter

rows, queries = np.load("rows.npy"), np.load("queries.npy")
labels = ["label_10p" if i % 10 == 0 else "others" for i in range(len(rows))]
config = DB.Bq.config_cls(host=sys.argv[1], user_name=sys.argv[2])
case = DB.Bq.case_config_cls()(metric_type=MetricType[sys.argv[3]])
db = DB.Bq.init_cls(
    rows.shape[1], config.to_dict(), case, drop_old=True, with_scalar_labels=True
)
with db.init():
    count, error = db.insert_embeddings(rows.tolist(), list(range(len(rows))), labels_data=labels)
    assert (count, error) == (len(rows), None), error
    db.optimize()
filters = {
    "label": LabelFilter(label_percentage=0.1),
    "id": NewIntFilter(filter_rate=0.5, int_value=len(rows) // 2),
    "none": non_filter,
}
found = {}
for name, chosen in filters.items():
    assert db.filter_supported(chosen)
    db.prepare_filter(chosen)
    with db.init():
        found[name] = [db.search_embedding(query.tolist(), 10) for query in queries]
        assert "Index Scan using vectordb_bench_bq_index" in str(db.conn.execute(
            "EXPLAIN " + db.statement.as_string(), (db.value(queries[0]), 10)
        ).fetchall()), name
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.parametrize("metric", ["COSINE", "L2", "IP"])
def test_filters_are_answered_in_the_index(
    server: dict[str, str], sentences: Any, tmp_path: Path, metric: str
) -> None:
    """Sentences have length 1, so that the nearest are the same by every metric."""
    rows, queries, _ = sentences
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "queries.npy", queries)
    arguments = (server["PGHOST"], server["PGUSER"], metric)
    run(PYTHON, "-c", FILTERED, *arguments, cwd=tmp_path, env=server)
    found = json.loads((tmp_path / "found.json").read_text())

    kept = {
        "label": np.arange(len(rows)) % 10 == 0,
        "id": np.arange(len(rows)) >= len(rows) // 2,
        "none": np.full(len(rows), True),
    }
    for name, rows_kept in kept.items():
        scores = np.where(rows_kept, queries @ rows.T, -np.inf)
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        recall = np.mean([len({*a} & {*b}) / K for a, b in zip(found[name], nearest, strict=True)])
        print(f"\nVectorDBBench's client, {metric}, filter {name}: found {recall:.3f}")
        assert rows_kept[np.array(found[name])].all()
        assert recall > 0.95
