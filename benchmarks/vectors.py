"""The index on pgvector's own columns beside HNSW and beside two-level queries on codes.

    python benchmarks/vectors.py FOLDER
    python benchmarks/vectors.py FOLDER --sets wordnet --parts flat filters --rounds 11
    python benchmarks/vectors.py FOLDER --rows 5000 --json vectors.json

FOLDER holds wordnet.npz, lsa.npz and tokens.npz; sets.py says what is made from wordnet.  Each set
is a table (id, embedding, code bqvec, four integer columns to filter by), with embedding a halfvec
or a vector stored as pgvector does by default (EXTERNAL, so out of line from 2 kB).  Its indexes
are built once, when a part first needs them:

- bq, hnsw      on embedding by cosine; hnsw with m 16, ef_construction 64
- inside        bq (embedding, and the four columns)
- code          bq (code), for the two-level query

All systems query the same table.  An index is chosen by hiding the others from the planner while
the statement is planned (pg_index.indisvalid); a check of the plan follows.  Statements are
prepared, with generic plans, binary parameters and results.  Net time is the median time of a
query minus that of SELECT 1.  Knobs are swept (ef_search; bq.recall alone; probes and rerank of
the two-level query), the fastest setting of the wanted recall is taken, then the systems run in
turn, round by round; ratios are medians of the rounds' ratios.

Parts, each of which can be run alone:

- build         seconds of one process, and bytes
- calibration   what bq.recall promises on held-out queries, and what it costs; other LIMITs
- flat          ORDER BY embedding <=> $1 LIMIT 10
- filters       the same with WHERE column = $2.  `hundredth`, `tenth`: 1 % and 10 % of the rows at
                random; `tenant`: the query's own of 100 clusters; `opposed`: 1 % of the rows, the
                farthest from one of 20 queries (a row goes to the first of them that takes it).
                inside: columns of the index; outside: the index without them; strict, relaxed:
                hnsw.iterative_scan, beyond hnsw.max_scan_tuples if it finds too little within.
                Sequential scans are disabled, or HNSW would not be used at all
- cold          the first 20 queries after restart, with the page cache dropped; needs root
- insertion     batches of held-out rows into the table without index, with bq, with HNSW, in turn
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
    show_only,
    value,
)
from pgvector import HalfVector, Vector
from sets import QUERIES, SEED, K, dense, kth_similarity, lifted, load, load_all, mixed, unit

import pybq
from pybq.psycopg import register_bq

RECALLS = (
    0.8,
    0.85,
    0.88,
    0.9,
    0.91,
    0.92,
    0.93,
    0.94,
    0.95,
    0.96,
    0.97,
    0.975,
    0.98,
    0.985,
    0.9875,
    0.99,
    0.995,
    0.999,
)
PROMISED = (0.9, 0.95, 0.98, 0.99)
LIMITS = (1, 100, 1000)
FILTERS = ("hundredth", "tenth", "tenant", "opposed")
FILTER_QUERIES = 100
OPPOSED_QUERIES = 20
FILTER_RECALL = 0.98
FILTER_EF = (40, 100, 200, 400, 1000)
HNSW_SCAN_TUPLES = 20_000  # pgvector's default of hnsw.max_scan_tuples
# net time / that of the filter inside the index
FASTER_INSIDE = {
    "hundredth": {"outside": 8, "strict": 15, "relaxed": 15},
    "tenth": {"outside": 2, "strict": 3, "relaxed": 3},
}
EXPLAINED = 50  # queries whose plans are read for codes and vectors compared
COLD_QUERIES = 20
COLD_ROUNDS = 3
BATCH = 100  # rows of an insertion
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

NEAREST = "SELECT id FROM items ORDER BY embedding <=> $1 LIMIT {}"

# name of an index -> what follows USING
INDEXES = {
    "bq": "bq (embedding {type}_cosine_ops)",
    "inside": f"bq (embedding {{type}}_cosine_ops, {', '.join(FILTERS)})",
    "code": "bq (code)",
    "hnsw": "hnsw (embedding {type}_cosine_ops) WITH (m = 16, ef_construction = 64)",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class VectorSet:
    """How a set is made of a folder and a number of rows, and what is asked of it by default."""

    make: Callable[[Path, int | None], tuple[Array, Array]]
    types: tuple[str, ...]
    parts: tuple[str, ...]
    faster: dict[float, float]  # recall -> HNSW's net time / bq's
    held_out: str | None = None  # file whose held-out rows can be inserted


def real(name: str) -> Callable[[Path, int | None], tuple[Array, Array]]:
    def make(folder: Path, n: int | None) -> tuple[Array, Array]:
        base, queries = load(folder, name)
        return base[:n], queries

    return make


BOTH = ("halfvec", "vector")
TIMED = ("build", "calibration", "flat")
SETS = {
    "wordnet": VectorSet(
        real("wordnet"),
        BOTH,
        (*TIMED, "filters", "cold", "insertion"),
        {0.95: 5, 0.99: 7},
        "wordnet",
    ),
    "wordnet-768": VectorSet(
        lambda folder, n: lifted(folder, 768, n or 100_000), BOTH, TIMED, {0.95: 4, 0.99: 5}
    ),
    "wordnet-1536": VectorSet(
        lambda folder, n: lifted(folder, 1536, n or 100_000),
        BOTH,
        (*TIMED, "filters", "cold"),
        {0.95: 4, 0.99: 5},
    ),
    "mixed-300k": VectorSet(
        lambda folder, n: mixed(folder, n or 300_000),
        ("halfvec",),
        (*TIMED, "cold"),
        {0.95: 7, 0.99: 10},
        "wordnet",
    ),
    "dense-300k": VectorSet(
        lambda folder, n: dense(folder, n or 300_000),
        ("halfvec",),
        TIMED,
        {0.95: 7, 0.99: 10},
        "wordnet",
    ),
    "lsa": VectorSet(real("lsa"), ("halfvec",), ("calibration",), {}, "lsa"),
    "tokens": VectorSet(real("tokens"), ("halfvec",), ("calibration",), {}, "tokens"),
}


# -- server ------------------------------------------------------------------------------


class Database:
    """A server that can be restarted, and a connection to it."""

    def __init__(self, folder: Path) -> None:
        self.server = pybq.serve(folder, settings=SETTINGS)
        self.conn = self._connect()

    def _connect(self) -> Conn:
        self.server.start()
        conn = psycopg.connect(self.server.dsn, autocommit=True)
        conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector")
        register_bq(conn)
        conn.prepare_threshold = None  # statements are prepared by name
        # small tables would be read from end to end, which is not what is measured
        conn.execute("SET enable_seqscan = off")
        conn.execute("SET enable_sort = off")
        return conn

    def stop(self) -> None:
        self.conn.close()
        self.server.stop()

    def restart_cold(self) -> None:
        """Stop, empty the system's page cache, start."""
        self.conn.execute("CHECKPOINT")
        self.stop()
        os.sync()  # pages that are not written yet would stay
        DROP_CACHES.write_text("3\n")
        self.conn = self._connect()


class Table:
    """The table of one set, its indexes, and statements that use them."""

    def __init__(
        self, database: Database, base: Array, queries: Array, type_: str, held_out: Array
    ) -> None:
        self.database = database
        self.type = type_
        # as stored, or rounding would be counted as loss
        self.base, self.queries, self.held_out = (
            unit(x.astype(np.float16)) if type_ == "halfvec" else x
            for x in (base, queries, held_out)
        )
        self.filters = make_filters(self.base, self.queries)
        self.seconds: dict[str, float] = {}  # of builds
        self.bytes: dict[str, int] = {}
        self.lists: dict[str, int] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.planned: dict[str, tuple[str, int]] = {}  # statement -> index, parameters
        self._create()

    @property
    def conn(self) -> Conn:
        return self.database.conn

    def _create(self) -> None:
        dim = self.base.shape[1]
        columns = ", ".join(f"{name} int" for name in FILTERS)
        self.conn.execute("DROP TABLE IF EXISTS items")
        self.conn.execute(
            f"CREATE TABLE items (id int, embedding {self.type}({dim}), code bqvec({dim}),"
            f" {columns})".encode()
        )
        self.copy(self.base, 0, [self.filters[name].column for name in FILTERS])
        self.conn.execute("VACUUM (FREEZE, ANALYZE) items")
        self.conn.execute("CHECKPOINT")

    def reset(self) -> None:
        """Back to recall without any setting."""
        self.conn.execute("RESET bq.recall")
        self.conn.execute("RESET bq.probes")

    def copy(self, rows: Array, first: int, columns: Iterable[Array] | None = None) -> float:
        """COPY prepared bytes; the seconds that took."""
        ids = np.arange(first, first + len(rows), dtype=np.int32)
        if columns is None:
            columns = [np.zeros(len(rows), np.int32)] * len(FILTERS)
        codes = pybq.Quantizer(rows.shape[1]).encode(rows)
        chunks = list(
            copy_bytes(
                [
                    ("int4", ids),
                    (self.type, rows),
                    ("bqvec", codes),
                    *(("int4", column) for column in columns),
                ]
            )
        )
        start = time.perf_counter()
        with self.conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
            for chunk in chunks:
                copy.write(chunk)
        return time.perf_counter() - start

    def build(self, *names: str) -> None:
        """Make the indexes that are not there yet."""
        for name in names:
            if name in self.seconds:
                continue
            what = INDEXES[name].format(type=self.type)
            start = time.perf_counter()
            self.conn.execute(f"CREATE INDEX items_{name} ON items USING {what}".encode())
            self.seconds[name] = time.perf_counter() - start
            self.bytes[name] = value(self.conn, f"SELECT pg_relation_size('items_{name}')")
            if name != "hnsw":
                # now, because an index that is hidden has no info
                info = f"SELECT lists FROM bq_index_info('items_{name}')"
                self.lists[name] = value(self.conn, info)
            self.conn.execute("CHECKPOINT")
            print(
                f"  built {name}: {self.seconds[name]:.1f} s, {self.bytes[name] / 1e6:.1f} MB",
                flush=True,
            )

    def forget(self) -> Statement:
        """Deallocate all statements; a new one of SELECT 1."""
        self.conn.execute("DEALLOCATE ALL")
        self.planned = {}
        return Statement(self.conn, "floor", "SELECT 1", [[]])

    def prepare(self, index: str, text: str, parameters: list[list[bytes]]) -> Statement:
        """A statement whose plan uses the index, which is there already."""
        show_only(self.conn, index)
        name = f"{index} {len(self.planned)}"
        statement = Statement(self.conn, name, text, parameters)
        self.planned[name] = (index, len(parameters[0]))
        self.check_plans(name)
        return statement

    def check_plans(self, *names: str) -> None:
        """Make plans, without executing them, or see that they are still what they were.

        Whatever changes the table's relcache entry, an index that is made, lets statements be
        planned anew, with the index that is shown by then.
        """
        for name in names or self.planned:
            index, n = self.planned[name]
            nulls = ", ".join(["NULL"] * n)  # a generic plan needs no values
            plan = value(self.conn, f'EXPLAIN (FORMAT JSON) EXECUTE "{name}" ({nulls})')
            if f"'items_{index}'" not in str(plan):
                raise RuntimeError(f'the plan of "{name}" does not use items_{index}: {plan}')

    def encode(self, vectors: Array) -> list[bytes]:
        kind = HalfVector if self.type == "halfvec" else Vector
        return [kind(x).to_binary() for x in vectors]

    @cached_property
    def kth(self) -> Array:
        return kth_similarity(self.base, self.queries)

    def curve(self, systems: Flat, name: str) -> list[dict[str, Any]]:
        """Recall and a first time of each setting of a system, measured once."""
        if name not in self.curves:
            for statement in systems.statements.values():
                statement.seconds(len(self.queries))  # into shared buffers
            self.curves[name] = [
                point(systems, setting, self.base, self.queries, self.kth)
                for setting in systems.settings(name)
            ]
        return self.curves[name]


# -- what is compared ----------------------------------------------------------------------


def apply(conn: Conn, **settings: Any) -> None:
    """SET each; hnsw__ef_search is hnsw.ef_search."""
    for name, to in settings.items():
        conn.execute(f"SET {name.replace('__', '.')} = {to}".encode())


class Flat:
    """The flat query by each index, and the two-level query on codes."""

    def __init__(self, table: Table, *names: str) -> None:
        self.table = table
        table.build(*("code" if name == "two-level" else name for name in names))
        self.floor = table.forget()
        vectors = table.encode(table.queries)
        self.statements: dict[Any, Statement] = {}
        for name in names:
            if name == "two-level":
                self._prepare_two_levels(vectors)
            else:
                self.statements[name] = table.prepare(
                    name, NEAREST.format(K), [[v] for v in vectors]
                )

    def _prepare_two_levels(self, vectors: list[bytes]) -> None:
        codes = [pybq.Query(q).to_binary() for q in self.table.queries]
        for rerank in RERANK:
            self.statements["two-level", rerank] = self.table.prepare(
                "code",
                "SELECT id FROM (SELECT id, embedding FROM items ORDER BY code <=> $1::bqquery"
                f" LIMIT {round(K * rerank)}) AS c ORDER BY embedding <=> $2 LIMIT {K}",
                [list(pair) for pair in zip(codes, vectors, strict=True)],
            )

    def settings(self, name: str) -> list[tuple[Any, ...]]:
        if name == "hnsw":
            return [(name, ef) for ef in EF_SEARCH]
        if name == "bq":
            return [(name, wanted) for wanted in RECALLS]
        lists = self.table.lists["code"]
        probes = sorted({max(1, round(lists * 2 ** (-i / 4))) for i in range(2, 36)})
        return [(name, n, rerank) for rerank in RERANK for n in probes]

    def set(self, setting: tuple[Any, ...]) -> Statement:
        """Apply ("hnsw", ef_search), ("bq", recall) or ("two-level", probes, rerank)."""
        name, knob, *more = setting
        if name == "hnsw":
            apply(self.table.conn, hnsw__ef_search=knob)
        elif name == "bq":
            apply(self.table.conn, bq__recall=knob, bq__probes=0)
        else:
            apply(self.table.conn, bq__recall=0, bq__probes=knob)
        return self.statements[(name, *more) if more else name]


@dataclass(frozen=True)
class Filter:
    """A column, and for each of some queries the value that it is to have."""

    column: Array  # int32 (n,)
    asked: Array  # positions of queries
    values: Array  # int32, one for each of them

    def kth_similarity(self, base: Array, queries: Array) -> Array:
        return np.concatenate(
            [
                kth_similarity(base[self.column == wanted], queries[i : i + 1])
                for i, wanted in zip(self.asked, self.values, strict=True)
            ]
        )


def make_filters(base: Array, queries: Array) -> dict[str, Filter]:
    rng = np.random.default_rng(SEED)
    asked = np.arange(min(FILTER_QUERIES, len(queries)))
    filters = {
        name: Filter(
            rng.integers(0, n, len(base)).astype(np.int32), asked, (asked % n).astype(np.int32)
        )
        for name, n in (("hundredth", 100), ("tenth", 10))
    }
    filters["tenant"] = Filter(*tenants(base, queries[asked], asked, rng))
    few = np.arange(min(OPPOSED_QUERIES, len(queries)))
    filters["opposed"] = Filter(opposed(base, queries[few]), few, few.astype(np.int32))
    return filters


def tenants(
    base: Array, queries: Array, asked: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Each row's and each query's cluster, of 100 by spherical k-means."""
    sample = base[rng.choice(len(base), min(len(base), 20_000), replace=False)]
    centres = sample[:100]
    for _ in range(8):
        own = (sample @ centres.T).argmax(axis=1)
        sums = [sample[own == c].sum(axis=0) for c in range(len(centres))]
        centres = unit(np.array([s if s.any() else c for s, c in zip(sums, centres, strict=True)]))
    column = (base @ centres.T).argmax(axis=1).astype(np.int32)
    # a tenant of fewer rows than are asked for has no true 10th
    enough = np.bincount(column, minlength=len(centres)) >= K
    values = np.where(enough, queries @ centres.T, -np.inf).argmax(axis=1)
    return column, asked, values.astype(np.int32)


def opposed(base: Array, queries: Array) -> Array:
    """For each query a hundredth of the rows, the farthest that are still free; -1 elsewhere."""
    column = np.full(len(base), -1, np.int32)
    for i, query in enumerate(queries):
        order = np.argsort(base @ query)
        column[order[column[order] < 0][: max(K, len(base) // 100)]] = i
    return column


class Filtered:
    """The flat query with a condition, by each way to answer it."""

    INDEX = {"inside": "inside", "outside": "bq", "strict": "hnsw", "relaxed": "hnsw"}

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.filter = table.filters[name]
        table.build(*self.INDEX.values())
        self.queries = table.queries[self.filter.asked]
        self.kth = self.filter.kth_similarity(table.base, table.queries)
        self.floor = table.forget()
        text = f"SELECT id FROM items WHERE {name} = $2 ORDER BY embedding <=> $1 LIMIT {K}"
        parameters = [
            [vector, int(wanted).to_bytes(4, "big", signed=True)]
            for vector, wanted in zip(table.encode(self.queries), self.filter.values, strict=True)
        ]
        self.statements = {
            way: table.prepare(index, text, parameters) for way, index in self.INDEX.items()
        }

    def set(self, setting: tuple[Any, ...]) -> Statement:
        """Apply ("inside" or "outside", recall), ("strict" or "relaxed", ef_search, tuples)."""
        way, knob, *more = setting
        if more:
            apply(
                self.table.conn,
                hnsw__iterative_scan=f"{way}_order",
                hnsw__ef_search=knob,
                hnsw__max_scan_tuples=more[0],
                # so that the number of rows is the limit, not their memory
                hnsw__scan_mem_multiplier=100,
            )
        else:
            apply(self.table.conn, bq__recall=knob, bq__probes=0)
        return self.statements[way]

    def point(self, setting: tuple[Any, ...]) -> dict[str, Any]:
        return point(self, setting, self.table.base, self.queries, self.kth)

    def curve(self) -> list[dict[str, Any]]:
        for way in ("inside", "outside"):
            self.set((way, FILTER_RECALL)).seconds(len(self.queries))  # into shared buffers
        points = [self.point((way, r)) for way in ("inside", "outside") for r in RECALLS]
        for way in ("strict", "relaxed"):
            own = [self.point((way, ef, HNSW_SCAN_TUPLES)) for ef in FILTER_EF]
            if max(p["recall"] for p in own) < FILTER_RECALL:
                own.append(self.point((way, FILTER_EF[0], len(self.table.base))))
            points += own
        return points


# -- parts ---------------------------------------------------------------------------------


def at_least(what: str, figure: float, target: float) -> Row:
    return report(what, figure, f">= {target}", figure >= target)


def at_most(what: str, figure: float, target: float) -> Row:
    return report(what, figure, f"<= {target}", figure <= target)


def show_build(table: Table, _: VectorSet, __: int) -> dict[str, Any]:
    """Seconds and bytes of the indexes."""
    table.build("bq", "inside", "hnsw")
    n, dim = table.base.shape
    plain = 1.15 * n * (dim / 4 + 12)
    seconds = table.seconds
    rows = [
        at_least("build time, HNSW / bq", seconds["hnsw"] / seconds["bq"], 15),
        at_most("bytes / (1.15 rows (dim/4 + 12))", table.bytes["bq"] / plain, 1),
        at_most(
            "bytes with filter columns / (the same + 4 each)",
            table.bytes["inside"] / (plain + 4 * len(FILTERS) * n),
            1,
        ),
    ]
    return {"seconds": dict(seconds), "bytes": dict(table.bytes), "rows": rows}


def show_calibration(table: Table, _: VectorSet, rounds: int) -> dict[str, Any]:
    """Recall found on held-out queries at each bq.recall, its cost, and other LIMITs."""
    systems = Flat(table, "bq")
    curve = table.curve(systems, "bq")
    tolerance = 0.02 if len(table.base) < 5000 else 0.01
    rows, promised = [], []
    for wanted in PROMISED:
        p = next(p for p in curve if p["setting"][1] == wanted)
        work = compared(table, systems.set(p["setting"]))
        print(f"  bq.recall = {wanted}: found {p['recall']:.3f}, {in_words(work)}")
        rows.append(
            at_least(f"bq.recall = {wanted}: found - promised", p["recall"] - wanted, -tolerance)
        )
        # of settings in rising order the first that finds it costs least
        cheapest = next(q for q in curve if q["recall"] >= min(wanted - tolerance, p["recall"]))
        times = in_turn(systems, p["setting"], cheapest["setting"], rounds)
        rows.append(
            at_most(f"bq.recall = {wanted}: time / that of the cheapest which finds it", times, 2)
        )
        promised.append({**p, "wanted": wanted, **work})
    default, limits = show_limits(table)
    return {"promised": promised, "limits": limits, "rows": [*rows, *default]}


def in_turn(systems: Flat, a: tuple[Any, ...], b: tuple[Any, ...], rounds: int) -> float:
    """Time of one setting / that of another, the median of rounds."""
    return statistics.median(
        systems.set(a).seconds(QUERIES) / systems.set(b).seconds(QUERIES) for _ in range(rounds)
    )


def compared(table: Table, statement: Statement) -> dict[str, float]:
    """Means over queries of what EXPLAIN (ANALYZE) counts."""
    plans = []
    for parameters in statement.parameters[:EXPLAINED]:
        result = table.conn.pgconn.exec_params(
            f"EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) {statement.text}".encode(),
            parameters,
            param_formats=[1] * len(parameters),
        )
        if result.status != 2:
            raise RuntimeError(result.error_message.decode())
        plans.append(json.loads(result.get_value(0, 0) or b"")[0]["Plan"]["Plans"][0])
    return {
        what.lower(): statistics.mean(plan[what] for plan in plans)
        for what in ("Lists Read", "Codes Compared", "Vectors Compared")
    }


def in_words(work: dict[str, float]) -> str:
    return ", ".join(f"{what} {n:.0f}" for what, n in work.items())


def show_limits(table: Table) -> tuple[list[Row], dict[int, Any]]:
    """Recall, and rows given, without any setting."""
    table.reset()
    table.forget()
    rows, found = [], {}
    vectors = [[v] for v in table.encode(table.queries)]
    for k in (k for k in sorted({K, *LIMITS}) if k <= len(table.base)):
        statement = table.prepare("bq", NEAREST.format(k), vectors)
        kth = kth_similarity(table.base, table.queries, k)
        times: list[float] = []
        share = recall(statement, table.base, table.queries, kth, times, k)
        seconds = statistics.median(times)
        work = compared(table, statement)
        given = statistics.mean(len(statement(i)) for i in range(EXPLAINED)) / k
        found[k] = {"recall": share, "seconds": seconds, "given": given, **work}
        print(
            f"  LIMIT {k}: found {share:.3f}, {seconds * 1e6:.0f} us, {in_words(work)}", flush=True
        )
        rows.append(at_least(f"LIMIT {k}: rows given / rows", given, 1))
    rows.append(at_least(f"recall@{K} without any setting", found[K]["recall"], 0.98))
    return rows, found


def show_flat(table: Table, about: VectorSet, rounds: int) -> dict[str, Any]:
    """Net time at equal recall, beside HNSW and the two-level query."""
    names = ("hnsw", "two-level", "bq")
    systems = Flat(table, *names)
    curve = [p for name in names for p in table.curve(systems, name)]
    two_level = 1.3 if table.base.shape[1] < 768 else 1.8
    result: dict[str, Any] = {"curve": curve, "rows": []}
    for wanted, faster in about.faster.items():
        comparison = compare(systems, curve, wanted, rounds)
        table.check_plans()
        result[f"at {wanted}"] = comparison
        for other, target in (("hnsw", faster), ("two-level", two_level)):
            times = paired_ratio(comparison, other, "bq")
            if times is not None:
                row = at_least(f"net time at recall {wanted}, {other} / bq", times, target)
                result["rows"].append(row)
    return result


def show_filters(table: Table, _: VectorSet, rounds: int) -> dict[str, Any]:
    """Each filter: rows given, recall, net time of each way to answer it."""
    result: dict[str, Any] = {"rows": []}
    for name in FILTERS:
        systems = Filtered(table, name)
        share = float(np.mean([np.mean(systems.filter.column == v) for v in systems.filter.values]))
        print(f"  WHERE {name} = $2: {share:.2%} of the rows", flush=True)
        table.reset()
        given = statistics.mean(
            len(systems.statements["inside"](i)) / K for i in range(len(systems.queries))
        )
        result["rows"].append(at_least(f"{name}: rows given without any setting / rows", given, 1))
        curve = systems.curve()
        comparison = compare(systems, curve, FILTER_RECALL, rounds)
        table.check_plans()
        result[name] = {"share": share, "curve": curve, **comparison}
        result["rows"] += filter_rows(name, comparison)
    return result


def filter_rows(name: str, comparison: dict[str, Any]) -> list[Row]:
    """Ratios to inside, for the filters that have targets; the times of all are printed."""
    rows = []
    for way, target in FASTER_INSIDE.get(name, {}).items():
        times = paired_ratio(comparison, way, "inside")
        if times is not None:
            rows.append(at_least(f"{name}: net time, {way} / inside", times, target))
    return rows


def show_cold(table: Table, _: VectorSet, __: int) -> dict[str, Any]:
    """Time of the first queries after a restart with nothing cached."""
    if not os.access(DROP_CACHES, os.W_OK):
        print(f"  cold: skipped, {DROP_CACHES} cannot be written")
        return {"rows": []}
    best = {}
    for name in ("hnsw", "bq"):
        curve = table.curve(Flat(table, name), name)
        enough = [p for p in curve if p["recall"] >= 0.95]
        best[name] = min(enough or curve, key=lambda p: float(p["seconds"]))
    rounds = []
    for i in range(COLD_ROUNDS):
        rounds.append({name: first_queries(table, p["setting"], i) for name, p in best.items()})
        for name, seconds in rounds[-1].items():
            print(f"  {name}: {seconds * 1e3:.1f} ms a query", flush=True)
    times = statistics.median(r["hnsw"] / r["bq"] for r in rounds)
    return {
        "best": best,
        "rounds": rounds,
        "rows": [at_least(f"mean of the first {COLD_QUERIES} queries, HNSW / bq", times, 10)],
    }


def first_queries(table: Table, setting: tuple[Any, ...], round_: int) -> float:
    """Mean time of queries that no round has asked before; libraries loaded, plan made."""
    table.database.restart_cold()
    # vector.so; bq.so comes with the plan
    table.conn.execute(f"SELECT '[1]'::{table.type} <=> '[1]'".encode())
    statement = Flat(table, setting[0]).set(setting)
    times = []
    for i in range(round_ * COLD_QUERIES, (round_ + 1) * COLD_QUERIES):
        start = time.perf_counter()
        statement(i)
        times.append(time.perf_counter() - start)
    return statistics.mean(times)


def show_insertion(table: Table, _: VectorSet, __: int) -> dict[str, Any]:
    """Rows into the table with one index or none, net of the table; recall after."""
    if len(table.held_out) < BATCH:
        print("  insertion: skipped, no rows are held out of this set")
        return {"rows": []}
    table.build("bq", "hnsw")
    before = default_recall(table, table.base)
    new = table.held_out[: len(table.held_out) // BATCH * BATCH]
    seconds: dict[str | None, list[float]] = {None: [], "bq": [], "hnsw": []}
    for first in range(0, len(new), BATCH):
        for index, times in seconds.items():
            # The other indexes miss the rows, so that each is inserted into one index once.
            show_only(table.conn, index, kept=True)
            times.append(table.copy(new[first : first + BATCH], len(table.base) + first))
    # the shortest: a batch takes a few milliseconds, and what disturbs it makes it longer
    plain = min(seconds[None])
    net = {name: min(seconds[name]) - plain for name in ("bq", "hnsw")}
    for name, took in net.items():
        print(f"  {name}: {took / BATCH * 1e6:.1f} us a row for the index alone")
    after = default_recall(table, np.vstack([table.base, new]))
    return {
        "net": net,
        "plain": plain,
        "rows": [
            # in terms of HNSW's, because bq's may be lost in the noise
            at_most("insertion, bq / HNSW, net of the table", net["bq"] / net["hnsw"], 0.05),
            at_least("recall after insertion - before", after - before, -0.005),
        ],
    }


def default_recall(table: Table, base: Array) -> float:
    table.reset()
    table.forget()
    vectors = [[v] for v in table.encode(table.queries)]
    statement = table.prepare("bq", NEAREST.format(K), vectors)
    return recall(statement, base, table.queries, kth_similarity(base, table.queries))


# in the order in which they run: insertion leaves the table with indexes that miss rows
PARTS: dict[str, Callable[[Table, VectorSet, int], dict[str, Any]]] = {
    "build": show_build,
    "calibration": show_calibration,
    "flat": show_flat,
    "filters": show_filters,
    "cold": show_cold,
    "insertion": show_insertion,
}


def show_set(
    database: Database, name: str, arguments: argparse.Namespace
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The parts of a set, for each type: set and type, part, result."""
    about = SETS[name]
    folder = arguments.folder
    base, queries = about.make(folder, arguments.rows)
    held_out = queries[:0]
    if about.held_out is not None:
        held_out = load_all(folder, about.held_out)[1][QUERIES:]
    for type_ in arguments.types or about.types:
        print(f"{name}, {type_}: {base.shape[0]} x {base.shape[1]}", flush=True)
        table = Table(database, base, queries, type_, held_out)
        for part, show in PARTS.items():
            if part in (arguments.parts or about.parts):
                yield f"{name}, {type_}", part, show(table, about, arguments.rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of wordnet.npz, lsa.npz, tokens.npz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: what each set has")
    parser.add_argument("--types", nargs="+", choices=BOTH, help="default: what each set has")
    parser.add_argument("--rows", type=int, help="only so many rows of each set")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of comparisons in turn")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()

    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # the server may run as another user
        database = Database(Path(name) / "data")
        try:
            about = describe(
                database.conn, data=str(arguments.folder), seed=SEED, settings=SETTINGS
            )
            for set_ in arguments.sets:
                for of, part, result in show_set(database, set_, arguments):
                    results.setdefault(of, {})[part] = result
                    # a long run may be cut short
                    save(arguments.json, about=about, results=results)
        finally:
            database.stop()
    rows = [r for parts in results.values() for part in parts.values() for r in part["rows"]]
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
