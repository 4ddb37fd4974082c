"""search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table as Grid

import pybq
from pybq._cli.arguments import Dsn, Json, Name, Schema, Vectors, Wanted, read_queries
from pybq._cli.connect import CommandError, connect, open_table
from pybq._cli.output import out, print_json
from pybq._searching.results import FUSED
from pybq._searching.search import RERANK


def search(
    table: Name,
    vector: Annotated[
        Path | None,
        typer.Option(
            help="The query: .npy of shape (dim,), or any file of vectors.", show_default=False
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Words to search for, beside the query or alone.",
            show_default=False,
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="Column that has the words; else that of its index.", show_default=False),
    ] = None,
    row: Annotated[
        int | None, typer.Option(help="Only this row of the file.", show_default=False)
    ] = None,
    k: Wanted = 10,
    rerank: Annotated[
        float,
        typer.Option(
            help="Of codes in a column: candidates as a multiple of k; 0 for their own order."
        ),
    ] = RERANK,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="A column to show; may be repeated.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Condition on the rows searched, e.g. 'price < 3'."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            help="Share of the true nearest rows wanted. Of codes in a column it takes the place "
            "of --rerank and --probes, and pybq calibrate measures once what it needs.",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(help="Lists of the index that are read first.", show_default=False),
    ] = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Find the nearest rows, or those that are near and have words."""
    if vector is None and text is None:
        raise CommandError("expected --vector, --text or both", "--text searches by words")
    queries = None if vector is None else read_queries(vector)
    if row is not None and queries is not None:
        if not -len(queries) <= row < len(queries):
            raise CommandError(f"no row {row} in {vector}", f"it has {len(queries)} rows")
        queries = queries[row][None]
    names = column or []
    taken = [name for name in names if name in ("id", "distance", *(FUSED if text else ()))]
    if as_json and taken:
        raise CommandError(f"column {taken[0]!r}: hits have a field of that name", "omit --json")
    with connect(dsn) as conn:
        opened = open_table(conn, table, schema, vectors)
        found = opened.search(
            queries,
            k,
            rerank=rerank or None,
            columns=names,
            where=where,
            recall=recall,
            probes=probes,
            text=None if text is None else [text] * (1 if queries is None else len(queries)),
            text_column=text_column,
        )
    several = cast("list[list[pybq.Hit]]", found)
    if as_json:
        print_json([[_as_dict(hit) for hit in hits] for hits in several])
        return
    fused = () if text is None else FUSED
    for i, hits in enumerate(several):
        grid = Grid("id", "distance", *fused, *map(escape, names))
        if len(several) > 1:
            grid.title = f"query {i}"
        for hit in hits:
            cells = [str(hit.id), "" if math.isnan(hit.distance) else f"{hit.distance:.6f}"]
            if hit.score is not None:
                ranks = ("" if rank is None else str(rank) for rank in _ranks(hit))
                cells += [f"{hit.score:.6f}", *ranks]
            cells += [str(hit[name]) for name in names]
            grid.add_row(*map(escape, cells))
        out.print(grid)


def _as_dict(hit: pybq.Hit) -> dict[str, Any]:
    distance = None if math.isnan(hit.distance) else hit.distance
    fused = {} if hit.score is None else dict(zip(FUSED, (hit.score, *_ranks(hit)), strict=True))
    return {"id": hit.id, "distance": distance, **fused, **hit.columns}


def _ranks(hit: pybq.Hit) -> tuple[int | None, int | None]:
    return hit.vector_rank, hit.text_rank
