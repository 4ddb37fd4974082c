"""recall, calibrate, bench."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table as Grid

from pybq._cli.arguments import (
    Dsn,
    Json,
    Name,
    Queries,
    Sample,
    Schema,
    Vectors,
    Wanted,
    read_queries,
)
from pybq._cli.connect import connect, open_table
from pybq._cli.output import out, print_comparison, print_json
from pybq._searching.calibrate import SAMPLE
from pybq._searching.search import RERANK
from pybq._tables.bench import bench_table
from pybq._tables.comparison import compare_all
from pybq._tables.recall import measure_recall


def recall(
    table: Name,
    k: Wanted = 10,
    sample: Sample = 100,
    queries: Queries = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Measure what searches find, against the exact order of the stored vectors."""
    given = None if queries is None else read_queries(queries)
    with connect(dsn) as conn:
        opened = open_table(conn, table, schema, vectors)
        by_index = opened.code_column is None
        if by_index and not opened._layout.distributed:
            print_comparison(compare_all(opened, k, sample, given), as_json)
            return
        measured = measure_recall(opened, given, k, sample)
    if as_json:
        print_json({"k": k, "measured": [dataclasses.asdict(one) for one in measured]})
        return
    grid = Grid("asked for" if by_index else "rerank", f"recall@{k}", "ms per query")
    for one in measured:
        setting, unset = (one.wanted, "nothing") if by_index else (one.rerank, "codes alone")
        name = unset if setting is None else f"{setting:g}"
        grid.add_row(name, f"{one.recall:.3f}", f"{one.milliseconds:.2f}")
    out.print(grid)


def calibrate(
    table: Name,
    wanted: Annotated[
        float,
        typer.Option("--recall", help="Share of the true nearest rows wanted, below 1."),
    ] = 0.98,
    k: Wanted = 10,
    sample: Sample = SAMPLE,
    queries: Queries = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Measure what a wanted recall needs of codes in a column; keep it for searches by --recall."""
    given = None if queries is None else read_queries(queries)
    with connect(dsn) as conn:
        effort = open_table(conn, table, schema, vectors).calibrate(wanted, k, given, sample)
    if as_json:
        print_json({"recall": wanted, "k": k, **effort._asdict()})
        return
    probes = "as many lists as the index reads by itself"
    if effort.probes is not None:
        probes = f"probes {effort.probes}"
    out.print(f"recall {wanted:g} of the {k} nearest: rerank {effort.rerank:g}, {probes}")


def bench(
    table: Name,
    k: Wanted = 10,
    sample: Sample = 100,
    rerank: Annotated[
        float | None,
        typer.Option(
            help=f"Of codes in a column: candidates as a multiple of k; {RERANK:g} if left out.",
            show_default=False,
        ),
    ] = None,
    queries: Queries = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Time searches by each index, or by codes, and in exact order; say what they find."""
    given = None if queries is None else read_queries(queries)
    with connect(dsn) as conn:
        opened = open_table(conn, table, schema, vectors)
        if opened.code_column is None:
            if rerank is not None:
                raise typer.BadParameter(f"--rerank: table {table} has no column of codes")
            if not opened._layout.distributed:
                print_comparison(compare_all(opened, k, sample, given), as_json)
                return
        found = bench_table(opened, given, k, sample, RERANK if rerank is None else rerank)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    grid = Grid("search", f"recall@{k}", "ms, median", "ms, 95 %")
    for one in found.measured:
        times = f"{one.milliseconds:.2f}", f"{one.p95_milliseconds:.2f}"
        grid.add_row(one.method, f"{one.recall:.3f}", *times)
    out.print(grid)
    out.print(
        f"{found.rows:,} rows x {found.dim}, {found.queries} queries; "
        f"a round trip takes {found.round_trip_milliseconds:.2f} ms"
    )
    if not found.indexes:
        out.print("no index: searches read every code")
