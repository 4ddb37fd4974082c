"""What an installed pybq has to do: the codes of tests/data by every kernel of this CPU, with the
extension's sources beside it, and, with --serve, a search on a server that is compiled from these.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import pybq
from pybq._codes import core

ROOT = Path(__file__).resolve().parents[1]


def check_files() -> None:
    package = Path(pybq.__file__).resolve().parent
    assert ROOT not in package.parents or Path(sys.prefix).resolve() in package.parents, package
    for name in ("extension/Makefile", "extension/bq.control", "extension/index/bqscan.c"):
        assert (package / "_source" / name).exists(), f"no {name} in {package / '_source'}"
    assert not list(package.glob("_*/*.c")), "what Cython wrote is in the wheel"


def check_codes() -> int:
    """Compare with golden.npz; how many codes there are in it for Quantizer's defaults."""
    compared = 0
    with np.load(ROOT / "tests" / "data" / "golden.npz") as golden:
        for key in (key for key in golden if key.startswith("payload") and key.endswith("_rms")):
            dim, transform = map(int, key.split("_")[1:3])
            vector = golden[f"vector_{dim}"].astype(np.float32)
            code = pybq.Quantizer(dim, transform).encode(vector)
            assert code.tobytes() == golden[key].tobytes(), (key, core.simd())
            compared += 1
    return compared


def check_server() -> int:
    """Make, fill, index and search a table; which row came first for the one searched with."""
    import psycopg

    vectors = np.random.default_rng(7).standard_normal((500, 16), dtype=np.float32)
    with pybq.serve() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
        table = pybq.Table.create(conn, "notes", dim=16)
        table.ingest(range(500), vectors)
        table.create_index()
        return int(table.search(vectors[42], k=1)[0].id)


check_files()
for kernel in core.kernels():
    core.set_kernel(kernel)
    assert check_codes() > 50
    print(f"pybq {pybq.__version__}, Python {sys.version.split()[0]}, kernel {kernel}: same codes")
core.set_kernel("auto")
if "--serve" in sys.argv[1:]:
    assert check_server() == 42
    print("the private server, compiled from the wheel, finds what was put into it")
