"""advise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psycopg
import typer
from rich.markup import escape
from rich.table import Table as Grid

from pybq._catalog.status import Status
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose, choose_by_sample
from pybq._cli.arguments import Dsn, Json, MetricOption, Schema, VectorColumn, Vectors
from pybq._cli.connect import CommandError, connect, open_table
from pybq._cli.output import out, print_json
from pybq._codes.metric import Metric
from pybq._loading.source import Source
from pybq._loading.sources import open_source
from pybq._tables.table import Table

# Rows of a file that `advise --file` looks at, spread evenly over it.
ADVISE_ROWS = 100_000


def advise(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="Name of the table.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Look at a file of vectors instead; needs no database.")
    ] = None,
    metric: MetricOption = None,
    vector_column: VectorColumn = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the variance profile: .png, .svg or .pdf.")
    ] = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Say whether to rotate vectors before they are packed, and why."""
    if (table is None) == (file is None):
        raise typer.BadParameter("name a table, or a file by --file")
    of_other: dict[str, Any] = {"--metric": metric, "--vector-column": vector_column}
    if file is not None:
        of_other = {"--vectors": vectors, "--schema": schema}
    for option, value in of_other.items():
        if value is not None:
            what = "a table" if file is None else "a file"
            raise typer.BadParameter(f"{option} does not go with {what}")
    decided: dict[str, Any] = {}
    if file is not None:
        statistics, decision = _advise_file(open_source(file, vector_column), metric or "cosine")
    else:
        assert table is not None
        with connect(dsn) as conn:
            opened = open_table(conn, table, schema, vectors)
            now = opened.status()
            statistics = _index_statistics(conn, now) or _stored_statistics(opened)
            decision = choose(statistics, metric=opened.metric)
            decided = dataclasses.asdict(now)
    if picture is not None:
        from pybq._cli.picture import draw_advice

        title = file.name if file is not None else str(table)
        draw_advice(picture, statistics, decision, title)
    _print_advice(decision, statistics, decided, picture, as_json)


def _index_statistics(conn: psycopg.Connection[Any], status: Status) -> Statistics | None:
    """What an index on vectors chose its transform by, of a table without codes."""
    for index in status.indexes if not status.codes else []:
        if index.method == "bq" and index.transform is not None:
            query = "SELECT (bq_index_statistics(%s::oid::regclass)).*"
            row = conn.execute(query, [index.oid]).fetchone()
            if row is not None and row[0] is not None:
                return Statistics.from_row(row, status.metric == "cosine")
    return None


def _stored_statistics(table: Table) -> Statistics:
    statistics = table.statistics()
    if not statistics.count:
        raise CommandError(
            f"nothing was ingested into {table.name} yet",
            f"ingest vectors, or look at a file of them: pybq advise --file {table.name}.npy",
        )
    return statistics


def _advise_file(source: Source, metric: Metric) -> tuple[Statistics, Decision]:
    """Statistics of a file, and the choice, with the recall measured on a sample."""
    statistics = Statistics(source.dim, normalize=metric == "cosine")
    parts, step = [], max(1, (source.rows or 0) // ADVISE_ROWS)
    start = 0
    for batch in source.batches():
        with np.errstate(over="ignore"):
            part = np.asarray(batch.vectors[::step], np.float32)
        try:
            statistics.update(part)
        except ValueError as error:
            raise _wrong_row(source, start, step, part) from error
        parts.append(part)
        start += len(batch.vectors)
    vectors = np.concatenate(parts)
    return statistics, choose_by_sample(statistics, vectors, metric)


def _wrong_row(source: Source, start: int, step: int, part: np.ndarray[Any, Any]) -> CommandError:
    """Make the error that names a row by its number in the file, not in the sample of it."""
    for i, vector in enumerate(part):
        try:
            Statistics(source.dim).update(vector)
        except ValueError as error:
            _, _, reason = str(error).partition(": ")
            return CommandError(f"{source.name}: row {start + i * step}: {reason}")
    raise AssertionError("rows are wrong together, but not one by one")


def _print_advice(
    decision: Decision,
    statistics: Statistics,
    decided: Mapping[str, Any],
    picture: Path | None,
    as_json: bool,
) -> None:
    if as_json:
        advice = dataclasses.asdict(decision) | {"dim": statistics.dim, "picture": picture}
        current = (
            {name: decided[name] for name in ("transform", "reason", "decided_count")}
            if decided
            else None
        )
        print_json(advice | {"table": current})
        return
    grid = Grid("statistic", "value", "meaning")
    axis, rotate, nan = decision.f_axis, decision.f_rotate, "unknown"
    for name, value, meaning in (
        ("vectors", f"{statistics.count:,} x {statistics.dim}", "seen so far"),
        ("CV(sigma)", f"{decision.cv_sigma:.3f}", "how unevenly coordinates vary; 0: all alike"),
        ("sign entropy", f"{decision.sign_entropy:.3f}", "what a sign bit says; 1: all it can"),
        (
            "F axes",
            nan if math.isnan(axis) else f"{axis:.3f}",
            "correlation of estimated and true similarity, on the original axes",
        ),
        ("F rotated", nan if math.isnan(rotate) else f"{rotate:.3f}", "the same after a rotation"),
    ):
        grid.add_row(name, value, meaning)
    out.print(grid)
    out.print(f"[bold]{escape(decision.reason)}[/]")
    if decided and decided["transform"] is not None:
        used = bool(decided["transform"])
        axes = f"rotation {decided['transform']}" if used else "the original axes"
        if not decided["codes"]:  # the index has seen more than statistics of single coordinates
            out.print(escape(f"The index uses {axes}. It chose {decided['reason']}."))
        else:
            agrees = "as it would be decided now"
            if used != decision.rotate:
                agrees = "now it would differ, and pybq reencode changes it"
            out.print(f"The table uses {axes}: {agrees}.")
    if picture is not None:
        out.print(f"picture: {escape(str(picture))}")
