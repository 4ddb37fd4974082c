"""Arguments that several commands share, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from pybq._cli.connect import CommandError
from pybq._codes.metric import Metric
from pybq._loading.sources import load_numpy, open_source


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["json"] = value
    return value


Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="PYBQ_DSN",
        help="Connection string of the database; else what PGHOST and its kind name; "
        "else the server of `pybq serve`.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", callback=_remember_json, is_eager=True, help="Print JSON."),
]
Name = Annotated[str, typer.Argument(metavar="TABLE", help="Name of the table.")]
Schema = Annotated[str | None, typer.Option(help="Schema of the table; else the search path.")]
Vectors = Annotated[
    str | None,
    typer.Option(
        "--vectors",
        help="Column of the table that holds the vectors or codes, if it has several.",
        show_default=False,
    ),
]
MetricOption = Annotated[
    Metric | None,
    typer.Option(help="Which rows are nearest; cosine for a new table.", show_default=False),
]
StoreOption = Annotated[
    Literal["halfvec", "vector", "none"],
    typer.Option(help="Type to keep the vectors in; none keeps codes only."),
]
Codes = Annotated[
    bool | None,
    typer.Option(
        "--codes/--no-codes", help="Keep codes in a column beside the vectors.", show_default=False
    ),
]
Transform = Annotated[
    int | None,
    typer.Option(
        help="0 for the original axes, else number of the rotation; "
        "left out, it is chosen from the data.",
        show_default=False,
    ),
]
VectorColumn = Annotated[
    str | None, typer.Option(help="Column of the file that holds the vectors.")
]
Wanted = Annotated[int, typer.Option("-k", help="Rows wanted per query.")]
Sample = Annotated[int, typer.Option(help="Number of queries.")]
Queries = Annotated[
    Path | None, typer.Option(help="File of queries; else random rows of the table.")
]


def split_pair(text: str, form: str, option: str) -> tuple[str, str]:
    """The two parts of what an option was given, which has the form of NAME=VALUE or the like."""
    name, found, value = text.partition(form.strip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    if not found or not name or not value:
        raise CommandError(f"{option}: expected {form}, got {text!r}")
    return name, value


def read_queries(path: Path) -> np.ndarray[Any, Any]:
    """Vectors of a file, shape (q, dim); a .npy may hold a single one of shape (dim,)."""
    if path.suffix == ".npy":
        if not path.exists():
            raise FileNotFoundError(f"no file {path}")
        return np.atleast_2d(load_numpy(path))
    return np.concatenate([np.asarray(batch.vectors) for batch in open_source(path).batches()])
