"""benchmarks/ann_benchmarks, run by ann-benchmarks itself (make test-harness): `run.py --local`
with and without --batch, and the figures that its own functions make of the results."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harnesslib import BUILD, PYTHON, ROOT, K, run

SOURCES = BUILD / "ann-benchmarks"

# The harness knows its data sets by name: ours is one more, and is there, so not downloaded.
RUN = """
import runpy, sys
from ann_benchmarks.datasets import DATASETS
DATASETS[sys.argv[1]] = None
sys.argv = ["run.py", "--dataset", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# As data_export.py, which passes over results of --batch
FIGURES = """
import json, sys
from ann_benchmarks.datasets import get_dataset
from ann_benchmarks.plotting.utils import compute_metrics_all_runs
from ann_benchmarks.results import load_all_results
name, count, batch = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
results = load_all_results(name, count, batch)
found = list(compute_metrics_all_runs(get_dataset(name)[0], results))
json.dump(found, open("figures.json", "w"), default=float)
"""

EXPECTED = {f"{t}, {r}" for t in ("vector", "halfvec") for r in (0.8, 0.95, 0.98, 0.999)}


def write_data(path: Path, rows: Any, queries: Any, nearest: Any, distance: str) -> None:
    """A data set as ann-benchmarks keeps them."""
    near = rows[nearest]
    if distance == "angular":
        distances = 1 - np.einsum("qkd,qd->qk", near, queries)
    else:
        distances = np.linalg.norm(near - queries[:, None], axis=2)
    with h5py.File(path, "w") as file:
        file.attrs.update(type="dense", distance=distance, dimension=rows.shape[1])
        file.attrs["point_type"] = "float"
        for name, values in {
            "train": rows,
            "test": queries,
            "neighbors": nearest,
            "distances": distances,
        }.items():
            file[name] = values


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The harness with our folder among its algorithms."""
    tree = tmp_path / "ann-benchmarks"
    shutil.copytree(SOURCES, tree, ignore=shutil.ignore_patterns(".git", "results"))
    folder = tree / "ann_benchmarks" / "algorithms" / "bq"
    shutil.copytree(ROOT / "benchmarks" / "ann_benchmarks", folder)
    config = (folder / "config.yml").read_text()
    config, n = re.subn(r"query_args: .*", "query_args: [[0.8, 0.95, 0.98, 0.999]]", config)
    assert n == 2
    (folder / "config.yml").write_text(config)
    (tree / "data").mkdir(exist_ok=True)
    return tree


# sentences have length 1, so that the nearest are the same by both distances
@pytest.mark.parametrize("distance", ["angular", "euclidean"])
@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batch"])
def test_recall_is_what_was_asked_for(
    tree: Path, server: dict[str, str], sentences: Any, distance: str, batch: bool
) -> None:
    rows, queries, nearest = sentences
    name = f"glosses-{rows.shape[1]}-{distance}"
    write_data(tree / "data" / f"{name}.hdf5", rows, queries, nearest, distance)

    options = ["--local", "--algorithm", "bq", "--count", K, "--runs", 2]
    options += ["--batch"] if batch else []
    # Its worker ends at once if it finds the queue empty that another thread is about to fill: what
    # is missing is run again, as the harness does for whoever starts it again.
    results, said = tree / "results" / name, ""
    for _ in range(10):
        if len(list(results.rglob("*.hdf5"))) == len(EXPECTED):
            break
        said = run(PYTHON, "-c", RUN, name, *options, cwd=tree, env=server)
    run(PYTHON, "-c", FIGURES, name, K, batch, cwd=tree, env=server)
    figures = json.loads((tree / "figures.json").read_text())

    print(f"\nann-benchmarks, {name}, {'--batch' if batch else 'one by one'}: recall, queries/s")
    seen = set()
    for row in sorted(figures, key=lambda row: row["parameters"]):
        kind, asked = re.match(r"Bq\(type=(\w+), recall=([\d.]+)\)", row["parameters"]).groups()
        seen.add(f"{kind}, {asked}")
        recall = float(row["k-nn"])
        print(f"  {kind:8} {asked:6} {recall:.3f} {float(row['qps']):8,.0f}")
        # promised on average, of the table's own rows; these are 200 other queries
        assert recall > float(asked) - 0.03, row
    assert seen == EXPECTED, said
