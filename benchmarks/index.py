"""The index beside pgvector's HNSW, in one embedded server.

    python benchmarks/index.py FOLDER
    python benchmarks/index.py FOLDER --sets wordnet-768 wordnet-1536 mixed-300k growth
    python benchmarks/index.py FOLDER --sets wordnet --rows 30000 --json index.json

FOLDER holds wordnet.npz; sets.py says what is made from it.

Both systems index the same rows of one table (id, embedding halfvec stored inline, code bqvec):
bq (code) with default options, hnsw (embedding halfvec_cosine_ops), m 16, ef_construction 64.
Queries are prepared, with a generic plan, binary parameters and a binary result; bq's best
`rerank` * 10 codes are put in order by the halfvec.  Net time is the median time of a query minus
that of SELECT 1 on the same connection.  A found row is a hit if it is at least as near as the true
10th.  Knobs are swept first (ef_search; probes and rerank), the fastest setting that reaches the
wanted recall is taken, then both systems run in turn, round by round; ratios are medians of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from ctypes import c_float
from pathlib import Path
from typing import Any

import kernels
import numpy as np
import psycopg
from common import (
    EF_SEARCH,
    RERANK,
    ROUNDS,
    SETTINGS,
    Array,
    Conn,
    Statement,
    compare,
    copy_bytes,
    describe,
    paired_ratio,
    point,
    recall,
    report,
    save,
    value,
)
from pgvector import HalfVector
from sets import SEED, K, dense, kth_similarity, lifted, load, mixed

import pybq
from pybq.psycopg import register_bq

# -- server ------------------------------------------------------------------------------


def create(conn: Conn, base: Array, table: str = "items") -> None:
    dim = base.shape[1]
    conn.execute(f"DROP TABLE IF EXISTS {table}".encode())
    conn.execute(
        f"CREATE TABLE {table} (id int, embedding halfvec({dim}), code bqvec({dim}))".encode()
    )
    conn.execute(f"ALTER TABLE {table} ALTER embedding SET STORAGE plain".encode())
    insert(conn, base, table)


def rows_of(base: Array, first: int = 0) -> list[bytes]:
    codes = pybq.Quantizer(base.shape[1]).encode(base)
    ids = np.arange(first, first + len(base), dtype=np.int32)
    return list(copy_bytes([("int4", ids), ("halfvec", base), ("bqvec", codes)]))


def insert(conn: Conn, base: Array, table: str = "items", first: int = 0) -> float:
    """COPY prepared bytes; the seconds that took."""
    chunks = rows_of(base, first)
    start = time.perf_counter()
    with conn.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)".encode()) as copy:
        for chunk in chunks:
            copy.write(chunk)
    return time.perf_counter() - start


def settle(conn: Conn) -> None:
    conn.execute("VACUUM (FREEZE, ANALYZE) items")
    conn.execute("CHECKPOINT")


def build(conn: Conn, system: str, table: str = "items") -> float:
    statement = {
        "bq": f"CREATE INDEX {table}_bq ON {table} USING bq (code)",
        "hnsw": f"CREATE INDEX {table}_hnsw ON {table} USING hnsw (embedding halfvec_cosine_ops)"
        " WITH (m = 16, ef_construction = 64)",
    }[system]
    start = time.perf_counter()
    conn.execute(statement.encode())
    return time.perf_counter() - start


class Systems:
    """Prepared queries of both systems on the table `items`."""

    def __init__(self, conn: Conn, queries: Array) -> None:
        self.conn = conn
        halves = [HalfVector(q).to_binary() for q in queries]
        codes = [pybq.Query(q).to_binary() for q in queries]
        conn.execute("DEALLOCATE ALL")
        self.floor = Statement(conn, "floor", "SELECT 1", [[]])
        self.hnsw = Statement(
            conn,
            "hnsw",
            f"SELECT id FROM items ORDER BY embedding <=> $1::halfvec LIMIT {K}",
            [[half] for half in halves],
        )
        self.bq = {
            rerank: Statement(
                conn,
                f"bq {rerank}",
                "SELECT id FROM (SELECT id, embedding FROM items ORDER BY code <=> $1::bqquery"
                f" LIMIT {round(K * rerank)}) AS c ORDER BY embedding <=> $2::halfvec LIMIT {K}",
                [list(pair) for pair in zip(codes, halves, strict=True)],
            )
            for rerank in RERANK
        }

    def set(self, setting: tuple[Any, ...]) -> Statement:
        """Apply ("hnsw", ef_search) or ("bq", probes, rerank); the statement to run."""
        if setting[0] == "hnsw":
            self.conn.execute(f"SET hnsw.ef_search = {setting[1]}".encode())
            return self.hnsw
        self.conn.execute(f"SET bq.probes = {setting[1]}".encode())
        return self.bq[setting[2]]


# -- what is shown --------------------------------------------------------------------------


def sweep(
    systems: Systems, base: Array, queries: Array, kth: Array, lists: int
) -> Iterator[dict[str, Any]]:
    """Recall and a first time of each setting."""
    probes = sorted({max(1, round(lists * 2 ** (-i / 4))) for i in range(2, 36)})
    settings: list[tuple[Any, ...]] = [("hnsw", ef) for ef in EF_SEARCH]
    settings += [("bq", n, rerank) for rerank in RERANK for n in probes]
    for setting in settings:
        yield point(systems, setting, base, queries, kth)


def show_queries(
    conn: Conn, name: str, base: Array, queries: Array, targets: dict[float, float]
) -> dict[str, Any]:
    """Build time, net time at equal recall, recall at defaults."""
    print(f"{name}: {base.shape[0]} x {base.shape[1]}", flush=True)
    create(conn, base)
    conn.execute("CHECKPOINT")
    seconds = {system: build(conn, system) for system in ("bq", "hnsw")}
    settle(conn)
    result: dict[str, Any] = {
        "build": seconds,
        "bytes": {s: value(conn, f"SELECT pg_relation_size('items_{s}')") for s in seconds},
        "rows": [],
    }
    share = seconds["hnsw"] / seconds["bq"]
    print(
        f"  build: bq {seconds['bq']:.1f} s, hnsw {seconds['hnsw']:.1f} s; bytes: {result['bytes']}"
    )
    result["rows"].append(report(f"{name}: build time, HNSW / bq", share, ">= 20", share >= 20))

    systems = Systems(conn, queries)
    for statement in (systems.hnsw, *systems.bq.values()):
        statement.seconds(len(queries))  # into shared buffers
    kth = kth_similarity(base, queries)
    default = recall(systems.set(("bq", 0, 4)), base, queries, kth)
    result["rows"].append(
        report(f"{name}: recall@10 at defaults, rerank 4", default, ">= 0.98", default >= 0.98)
    )
    lists = value(conn, "SELECT lists FROM bq_index_info('items_bq')")
    curve = list(sweep(systems, base, queries, kth, lists))
    result["curve"] = curve
    for wanted, target in targets.items():
        comparison = compare(systems, curve, wanted)
        result[f"at {wanted}"] = comparison
        times = paired_ratio(comparison, "hnsw", "bq")
        if times is not None:
            result["rows"].append(
                report(
                    f"{name}: net time at recall {wanted}, HNSW / bq",
                    times,
                    f">= {target}",
                    times >= target,
                )
            )
    return result


def show_sizes(conn: Conn, _: Path) -> dict[str, Any]:
    """Bytes of the index over rows x (dim / 4 + 12)."""
    rng = np.random.default_rng(SEED)
    rows = []
    n = 50_000
    for dim in (256, 384, 512, 768, 1024, 1536, 3072):
        conn.execute("DROP TABLE IF EXISTS codes")
        conn.execute(f"CREATE TABLE codes (id int, code bqvec({dim}))".encode())
        centres = rng.standard_normal((500, dim)).astype(np.float32)
        for first in range(0, n, 10_000):
            noise = rng.standard_normal((10_000, dim), np.float32)
            codes = pybq.Quantizer(dim).encode(centres[rng.integers(0, 500, 10_000)] + noise)
            ids = np.arange(first, first + 10_000, dtype=np.int32)
            with conn.cursor().copy("COPY codes FROM STDIN (FORMAT BINARY)") as copy:
                for chunk in copy_bytes([("int4", ids), ("bqvec", codes)]):
                    copy.write(chunk)
        conn.execute("CREATE INDEX codes_bq ON codes USING bq (code)")
        size = value(conn, "SELECT pg_relation_size('codes_bq')") / (n * (dim / 4 + 12))
        rows.append(
            report(f"index bytes / (rows x (dim/4 + 12)), {dim}-d", size, "<= 1.15", size <= 1.15)
        )
    conn.execute("DROP TABLE codes")
    return {"rows": rows}


def show_insertion(conn: Conn, folder: Path) -> dict[str, Any]:
    """Rows/s into an index of 100,000 rows, by COPY."""
    base, queries = load(folder)
    old, new = base[:100_000], base[100_000:105_000]
    seconds = {}
    rows = []
    for system in ("bq", "hnsw"):
        create(conn, old)
        build(conn, system)
        settle(conn)
        if system == "bq":
            before = value(conn, "SELECT bq_recall('items_bq', 2000)")
        plain = min(_insert_without_index(conn, new) for _ in range(3))
        batches = [insert(conn, part, first=100_000) for part in np.array_split(new, 5)]
        seconds[system] = statistics.median(batches) * 5 - plain
        print(
            f"  {system}: {len(new) / (seconds[system] + plain):.0f} rows/s into the table,"
            f" {len(new) / seconds[system]:.0f} rows/s into the index alone"
        )
        if system == "bq":
            after = value(conn, "SELECT bq_recall('items_bq', 2000)")
            rows.append(
                report(
                    "recall of codes after / before insertion",
                    after / before,
                    ">= 0.995",
                    after >= 0.995 * before,
                )
            )
    ratio = seconds["hnsw"] / seconds["bq"]
    rows.insert(
        0, report("insertion, HNSW's time / bq's (net of the table)", ratio, ">= 20", ratio >= 20)
    )
    return {"seconds": seconds, "rows": rows}


def _insert_without_index(conn: Conn, new: Array) -> float:
    create(conn, new[:1], "plain")
    return insert(conn, new, "plain")


def show_churn(conn: Conn, folder: Path) -> dict[str, Any]:
    """Delete half, VACUUM, insert again, three rounds: size and recall of the first build."""
    base, queries = load(folder)
    create(conn, base)
    build(conn, "bq")
    settle(conn)
    kth = kth_similarity(base, queries)
    first_size = value(conn, "SELECT pg_relation_size('items_bq')")
    systems = Systems(conn, queries)
    first = recall(systems.set(("bq", 0, 4)), base, queries, kth)
    rng = np.random.default_rng(SEED)
    rows = []
    for cycle in range(3):
        gone = np.flatnonzero(rng.random(len(base)) < 0.5)
        conn.execute("DELETE FROM items WHERE id = ANY(%s)", (gone.tolist(),))
        conn.execute("VACUUM items")
        codes = pybq.Quantizer(base.shape[1]).encode(base[gone])
        with conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
            for chunk in copy_bytes(
                [("int4", gone.astype(np.int32)), ("halfvec", base[gone]), ("bqvec", codes)]
            ):
                copy.write(chunk)
        conn.execute("VACUUM ANALYZE items")
        size = value(conn, "SELECT pg_relation_size('items_bq')") / first_size
        found = recall(systems.set(("bq", 0, 4)), base, queries, kth)
        rows.append(
            report(f"churn, round {cycle + 1}: size / first size", size, "<= 1.05", size <= 1.05)
        )
        rows.append(
            report(
                f"churn, round {cycle + 1}: recall lost",
                first - found,
                "<= 0.005",
                first - found <= 0.005,
            )
        )
    conn.execute("SELECT bq_index_check('items_bq', true)")
    return {"rows": rows}


def show_operators(conn: Conn, folder: Path) -> dict[str, Any]:
    """Recall at defaults of each operator, vectors of uneven norms, against all codes in order."""
    base, queries = load(folder)
    rng = np.random.default_rng(SEED)
    base = base * rng.lognormal(0, 0.5, (len(base), 1)).astype(np.float32)
    create(conn, base)
    build(conn, "bq")
    settle(conn)
    code = pybq.Quantizer(base.shape[1]).encode(queries)
    rows = []
    for operator, what, parameters in (
        ("<~>", "bqvec", [pybq.Code(c).to_binary() for c in code]),
        ("<=>", "bqquery", [pybq.Query(q).to_binary() for q in queries]),
        ("<#>", "bqquery", [pybq.Query(q).to_binary() for q in queries]),
        ("<->", "bqquery", [pybq.Query(q).to_binary() for q in queries]),
    ):
        conn.execute("DEALLOCATE ALL")
        nearest = f"SELECT (code {operator} $1::{what}) FROM items ORDER BY 1 LIMIT {K}"
        statement = Statement(conn, "nearest", nearest, [[p] for p in parameters])
        distances = {}
        for probes in (0, 65536):
            conn.execute(f"SET bq.probes = {probes}".encode())
            distances[probes] = np.array([_distances(statement, i) for i in range(len(queries))])
        hits = distances[0] <= distances[65536][:, -1:]
        found = float(hits.mean())
        rows.append(
            report(f"recall@10 of codes at defaults, {operator}", found, ">= 0.95", found >= 0.95)
        )
    return {"rows": rows}


def _distances(statement: Statement, i: int) -> list[float]:
    parameters = statement.parameters[i]
    result = statement.pgconn.exec_prepared(statement.name, parameters, [1], 1)
    return [
        float(np.frombuffer(result.get_value(r, 0) or b"", ">f8")[0]) for r in range(result.ntuples)
    ]


def show_scan(conn: Conn, folder: Path) -> dict[str, Any]:
    """Time per code of reading all lists, beside the bare kernel on the same codes in memory."""
    base, queries = load(folder)
    dim = base.shape[1]
    create(conn, base)
    build(conn, "bq")
    settle(conn)
    conn.execute("DEALLOCATE ALL")
    nearest = "SELECT id FROM items ORDER BY code <=> $1::bqquery LIMIT 1"
    parameters = [[pybq.Query(q).to_binary()] for q in queries]
    scan = Statement(conn, "scan", nearest, parameters)

    planes = np.ascontiguousarray(pybq.Quantizer(dim).encode(base)[:, -2 * ((dim + 7) // 8) :])
    blocks = np.zeros((-(-len(base) // 32), (dim + 1) // 2, 16), np.uint8)
    for i, row in enumerate(planes):
        kernels.corelib.load().bq_block_put(
            kernels.address(blocks[i // 32]), dim, i % 32, kernels.address(row)
        )
    table = np.zeros((dim + 1) // 2 * 16, np.uint8)
    kernels.corelib.load().bq_lut_query(
        kernels.address(queries[0]), dim, kernels.address(table), c_float(), c_float()
    )
    loops = kernels.load_loops()
    kernel = kernels.corelib.kernel(kernels.corelib.available_kernels()[0])

    rounds = []
    for _ in range(3 * ROUNDS):
        seconds = []
        for probes in (65536, 1):
            conn.execute(f"SET bq.probes = {probes}".encode())
            seconds.append(scan.seconds(100))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            loops.bench_lut(
                kernel, kernels.address(table), kernels.address(blocks), len(blocks), (dim + 1) // 2
            )
            times.append(time.perf_counter() - start)
        rounds.append(((seconds[0] - seconds[1]) / len(base), statistics.median(times) / len(base)))
    ratio = statistics.median(inside / bare for inside, bare in rounds)
    inside, bare = (statistics.median(r[i] for r in rounds) * 1e9 for i in (0, 1))
    print(f"  per code: {inside:.1f} ns inside PostgreSQL, {bare:.1f} ns bare kernel")
    return {"rows": [report("scan per code, inside / bare kernel", ratio, "<= 2", ratio <= 2)]}


def show_growth(conn: Conn, folder: Path) -> dict[str, Any]:
    """Net time at recall 0.95, 300k rows over 30k rows."""
    nets = {}
    for n in (30_000, 300_000):
        base, queries = mixed(folder, 300_000)
        base = base[np.random.default_rng(SEED).permutation(len(base))[:n]]
        create(conn, base)
        build(conn, "bq")
        settle(conn)
        systems = Systems(conn, queries)
        kth = kth_similarity(base, queries)
        lists = value(conn, "SELECT lists FROM bq_index_info('items_bq')")
        settings = [
            ("bq", max(1, round(lists * 2 ** (-i / 2))), r) for i in range(20) for r in RERANK
        ]
        points = []
        for setting in settings:
            statement = systems.set(setting)
            if recall(statement, base, queries, kth) >= 0.95:
                points.append((statement.seconds(200) - systems.floor.seconds(200), setting))
        nets[n], setting = min(points)
        print(f"  {n} rows: {setting[1:]}, net {nets[n] * 1e6:.0f} us")
    ratio = nets[300_000] / nets[30_000]
    return {
        "net": nets,
        "rows": [report("growth 30k -> 300k, net time at 0.95", ratio, "<= 3.5", ratio <= 3.5)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of wordnet.npz")
    parser.add_argument("--rows", type=int, help="only so many rows of wordnet")
    parser.add_argument("--json", help="file for all figures")
    sets: dict[str, Callable[[Conn, Path], dict[str, Any]]] = {
        "wordnet": lambda conn, folder: show_queries(
            conn, "wordnet", load(folder)[0][: arguments.rows], load(folder)[1], {0.95: 3, 0.99: 5}
        ),
        "sizes": show_sizes,
        "insertion": show_insertion,
        "churn": show_churn,
        "operators": show_operators,
        "growth": show_growth,
        "scan": show_scan,
        "wordnet-768": lambda conn, folder: show_queries(
            conn, "wordnet-768", *lifted(folder, 768), {0.95: 3, 0.99: 5}
        ),
        "wordnet-1536": lambda conn, folder: show_queries(
            conn, "wordnet-1536", *lifted(folder, 1536), {0.95: 3, 0.99: 5}
        ),
        "mixed-300k": lambda conn, folder: show_queries(
            conn, "mixed-300k", *mixed(folder, 300_000), {0.95: 6, 0.99: 10}
        ),
        "dense-300k": lambda conn, folder: show_queries(
            conn, "dense-300k", *dense(folder, 300_000), {0.95: 6, 0.99: 10}
        ),
    }
    default = ["wordnet", "scan", "sizes", "insertion", "churn", "operators"]
    parser.add_argument("--sets", nargs="+", choices=sets, default=default)
    arguments = parser.parse_args()

    with pybq.serve(settings=SETTINGS) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            register_bq(conn)
            conn.prepare_threshold = None  # statements are prepared by name
            about = describe(conn, data=str(arguments.folder), seed=SEED, settings=SETTINGS)
            results = {name: sets[name](conn, arguments.folder) for name in arguments.sets}
    save(arguments.json, about=about, results=results)
    return 0 if all(row["met"] for result in results.values() for row in result["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
