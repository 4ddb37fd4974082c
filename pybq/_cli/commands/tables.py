"""create, ingest, adopt, status, reencode."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
import typer
from rich.markup import escape

import pybq
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.opening import find_table
from pybq._catalog.schema import TableOptions
from pybq._cli.arguments import (
    Codes,
    Dsn,
    Json,
    MetricOption,
    Name,
    Sample,
    Schema,
    StoreOption,
    Transform,
    VectorColumn,
    Vectors,
    Wanted,
    split_pair,
)
from pybq._cli.connect import CommandError, connect, open_table
from pybq._cli.output import out, print_comparison, print_json, print_status
from pybq._codes.metric import Metric
from pybq._loading.source import Source
from pybq._loading.sources import open_source
from pybq._tables.table import Table

Conflict = Literal["error", "update", "skip"]


def create(
    table: Name,
    dim: Annotated[int, typer.Option(help="Number of dimensions.")],
    metric: MetricOption = None,
    store: StoreOption = "halfvec",
    codes: Codes = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME:TYPE", help="A further column; may be repeated."),
    ] = None,
    id_type: Annotated[str, typer.Option(help="SQL type of the primary key `id`.")] = "bigint",
    transform: Transform = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Create a table, e.g.: pybq create items --dim 384 --column title:text."""
    columns = dict(split_pair(pair, "NAME:TYPE", "--column") for pair in column or [])
    with connect(dsn) as conn:
        made = Table.create(
            conn,
            table,
            dim,
            metric or "cosine",
            store=None if store == "none" else store,
            codes=codes,
            columns=columns,
            id_type=id_type,
            transform=transform,
            schema=schema,
        )
        print_status(made, as_json)


def ingest(
    file: Annotated[
        Path, typer.Argument(help="Vectors: .npy, .npz, .parquet, .fvecs, .bvecs, .h5.")
    ],
    table: Annotated[str, typer.Option(help="Table to write to, created if there is none.")],
    metric: MetricOption = None,
    store: Annotated[
        Literal["halfvec", "vector", "none"] | None,
        typer.Option(
            help="Type to keep the vectors in, none for codes only; halfvec for a new table."
        ),
    ] = None,
    codes: Codes = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="Only this column of the file besides the vectors; may be repeated."
        ),
    ] = None,
    vector_column: VectorColumn = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the file that holds the primary keys.")
    ] = None,
    first_id: Annotated[
        int, typer.Option(help="Key of the first row, if the file has no keys.")
    ] = 0,
    on_conflict: Annotated[
        Conflict, typer.Option(help="What to do with keys that are in the table already.")
    ] = "error",
    resume: Annotated[
        bool, typer.Option(help="Go on where an earlier load of this file was interrupted.")
    ] = False,
    connections: Annotated[int, typer.Option(min=1, help="Batches written at once.")] = 1,
    batch_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows in a batch; default 16 MB of them.")
    ] = None,
    index: Annotated[bool, typer.Option(help="Build the index afterwards.")] = False,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Write the vectors of a file in batches, each whole or not at all.

    A new table gets the columns of the file, one that is there those that both have; --column
    chooses among them.
    """
    source = open_source(file, vector_column, id_column)
    unknown = set(column or ()) - set(source.columns)
    if unknown:
        raise CommandError(
            f"{file} has no usable column {', '.join(sorted(unknown))}",
            f"it has: {', '.join(source.columns) or 'none but its vectors'}",
        )
    with connect(dsn) as conn:
        target = _open_for(source, conn, table, schema, metric, store, codes, column, vectors)
        wanted = column or [name for name in source.columns if name in target.columns]
        try:
            rows = target.load(
                source,
                columns=wanted,
                first_id=first_id,
                on_conflict=on_conflict,
                resume=resume,
                name=str(file.resolve()),
                connections=connections,
                batch_rows=batch_rows,
                progress=False if as_json else None,
            )
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted; the batches that were written stay",
                "the same command with --resume goes on with the next one",
            ) from None
        if index:
            target.create_index()
        learned = target.status()
    left_out = sorted({*source.columns, *source.skipped} - set(wanted))
    if as_json:
        answer = {"rows": rows, "columns": wanted, "left_out": left_out}
        print_json(answer | dataclasses.asdict(learned))
        return
    out.print(f"{rows:,} rows written to {escape(table)}")
    if left_out:
        out.print(f"not carried along: {escape(', '.join(left_out))}")
    out.print(escape(str(learned)), soft_wrap=True)


def _open_for(
    source: Source,
    conn: psycopg.Connection[Any],
    name: str,
    schema: str | None,
    metric: Metric | None,
    store: Literal["halfvec", "vector", "none"] | None,
    codes: bool | None,
    columns: list[str] | None,
    vectors: str | None,
) -> Table:
    """Open the table that a source is to be written to, or create one that fits it."""
    options: TableOptions = {"codes": codes}
    if store is not None:
        options["store"] = None if store == "none" else store
    if run(find_table(BlockingDatabase(conn), name, schema)) is None:
        untyped = set(columns or ()) - set(source.column_types)
        if untyped:
            raise CommandError(
                f"{source.name}: no SQL type fits column {', '.join(sorted(untyped))}",
                f"make the table first: pybq create {name} --dim {source.dim} --column NAME:TYPE",
            )
        wanted = source.column_types if columns is None else columns
        options["columns"] = {column: source.column_types[column] for column in wanted}
        options["id_type"] = source.id_type
    return Table(conn, name, source.dim, metric, schema=schema, column=vectors, **options)


def adopt(
    table: Name,
    column: Annotated[
        str | None,
        typer.Option(
            "--vectors",
            "--column",
            help="The column of vectors, if there are several.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option(
            help="Which rows are nearest; left out, that of pgvector's index, or cosine.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="A column to filter by in the index; may be repeated."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            help="Share of the nearest rows that queries should find.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Measure recall and time beside pgvector's index; reads the table once a query.",
        ),
    ] = False,
    k: Wanted = 10,
    sample: Sample = 50,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Index the vectors of a pgvector table while it is in use, beside the index it has."""
    with connect(dsn) as conn:
        made = pybq.adopt(
            conn,
            table,
            column=column,
            metric=metric,
            filters=filters or [],
            recall=recall,
            schema=schema,
            compare=compare,
            k=k,
            sample=sample,
        )
    if as_json:
        print_json(dataclasses.asdict(made))
        return
    size = f"{made.nbytes / 1e6:,.1f} MB"
    if made.seconds is None:
        out.print(f"index {escape(made.index)} was there already, {size}")
    else:
        out.print(f"index {escape(made.index)} made in {made.seconds:.1f} s, {size}")
        out.print(escape(made.statement or ""), soft_wrap=True)
    if made.comparison is not None:
        print_comparison(made.comparison)
    for statement in made.drop:
        out.print("When you are content, this drops the old index:")
        out.print(f"  {escape(statement)};", soft_wrap=True, highlight=False)
    if made.drop_codes:
        out.print("And these drop the column of codes, which the index does without:")
    for statement in made.drop_codes:
        out.print(f"  {escape(statement)};", soft_wrap=True, highlight=False)


def status(
    table: Name,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Say what is known of a table: rows, indexes, axes or rotation, and what would help."""
    with connect(dsn) as conn:
        print_status(open_table(conn, table, schema, vectors), as_json)


def reencode(
    table: Name,
    transform: Transform = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Make codes of another transform while the table is in use; goes on if interrupted."""
    with connect(dsn) as conn:
        opened = open_table(conn, table, schema, vectors)
        before = opened.status().transform
        rows = opened.reencode(transform, progress=False if as_json else None)
        learned = opened.status()
    if as_json:
        answer = {"rows": rows, "transform_before": before}
        print_json(answer | dataclasses.asdict(learned))
        return
    if learned.transform == before:
        out.print(f"nothing to do: transform {before} stays")
    else:
        out.print(f"{rows:,} rows of {escape(table)} encoded anew")
    out.print(escape(str(learned)), soft_wrap=True)
