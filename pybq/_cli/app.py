"""The `pybq` command: parses arguments, calls the other modules, prints for people or as JSON.

Exit status: 0 success, 1 it failed and the message says why, 2 wrong arguments.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

import numpy as np
import psycopg
import typer
from psycopg.rows import tuple_row
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid
from typer.core import TyperGroup

import pybq
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.layout import name_table
from pybq._catalog.registry import find_all
from pybq._catalog.schema import TableOptions
from pybq._catalog.status import Status
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose, choose_by_sample
from pybq._cli import doctor as doctors
from pybq._codes.metric import Metric
from pybq._loading.source import Source
from pybq._loading.sources import load_numpy, open_source
from pybq._searching.calibrate import SAMPLE
from pybq._searching.search import RERANK
from pybq._tables.bench import bench_table
from pybq._tables.comparison import Comparison, compare_all
from pybq._tables.recall import measure_recall
from pybq._tables.table import Hit, Table
from pybq.errors import BuildError, ExtensionMissingError, LoadError, ServerError, TableError

# Rows of a file that `advise --file` looks at, spread evenly over it.
ADVISE_ROWS = 100_000

# Variables of libpq that say which server or database is meant.
NAMING = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGDATABASE")

Conflict = Literal["error", "update", "skip"]

_out = Console()
_err = Console(stderr=True)


class CommandError(Exception):
    """Something the user can put right; the hint says how."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class _Group(TyperGroup):
    """Turns what the modules raise into a message and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as by `| head`; click ends in silence
            raise
        except (
            CommandError,
            TableError,
            LoadError,
            ExtensionMissingError,
            ServerError,
            BuildError,
            ModuleNotFoundError,
            OSError,
            TypeError,
            ValueError,
            psycopg.Error,
        ) as error:
            if "PYBQ_TRACEBACK" in os.environ:
                raise
            _fail(error, ctx.meta.get("json", False))


def _fail(error: Exception, as_json: bool) -> NoReturn:
    message, hint = str(error).strip() or type(error).__name__, getattr(error, "hint", "")
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        message = error.diag.message_primary
        hint = error.diag.message_hint or error.diag.message_detail or ""
    if as_json:
        _print_json({"error": message, "hint": hint or None, "type": type(error).__name__})
    else:
        _err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        if hint:
            _err.print(f"[bold]hint:[/] {escape(hint)}", soft_wrap=True)
    raise typer.Exit(1)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Vector search in PostgreSQL on 2-bit codes. Start with: pybq serve",
)


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["json"] = value
    return value


def _print_version(value: bool) -> None:
    if value:
        print(pybq.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None: ...


Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="PYBQ_DSN",
        help="Connection string of the database. Without: PGHOST and so on, or `pybq serve`.",
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
        help="Column of the vectors or codes, if the table has several.",
        show_default=False,
    ),
]
MetricOption = Annotated[
    Metric | None, typer.Option(help="Which rows are nearest; cosine for a new table.")
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
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="A further column; may be repeated.")
]
VectorColumn = Annotated[
    str | None, typer.Option(help="Column of the file that holds the vectors.")
]
Wanted = Annotated[int, typer.Option("-k", help="Rows wanted per query.")]
Sample = Annotated[int, typer.Option(help="Number of queries.")]
Queries = Annotated[
    Path | None, typer.Option(help="File of queries; else random rows of the table.")
]


# -- commands -----------------------------------------------------------------------------


@app.command()
def serve(
    data_dir: Annotated[
        Path | None,
        typer.Argument(help="Folder of the database, made if missing.", show_default=False),
    ] = None,
    postgres: Annotated[int, typer.Option(help="Major version, 18 or 16.")] = 18,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A server setting; may be repeated."),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="PYBQ_PASSWORD",
            help="Password of clients on the network, with --set listen_addresses=...",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a private PostgreSQL with bq and pgvector until interrupted (Ctrl-C).

    Other commands find it by themselves if no folder is named.
    """
    folder = _default_data_dir() if data_dir is None else data_dir
    pairs = [_split_pair(setting, "=", "--set") for setting in settings or []]
    running = _running_dsn(folder)
    if running is not None:
        raise CommandError(f"a server already runs on {folder}", f"use it: --dsn '{running}'")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with pybq.serve(folder, postgres, dict(pairs), password) as server:
        if as_json:
            _print_json({"dsn": server.dsn, "data_dir": folder, "log": server.log_path})
        else:
            _out.print(f"PostgreSQL {postgres} with bq is running on {folder}")
            _out.print(f"  psql '{server.dsn}'", soft_wrap=True, highlight=False)
            if data_dir is not None:
                _out.print(f"  export PYBQ_DSN='{server.dsn}'", soft_wrap=True, highlight=False)
            _out.print("Ctrl-C stops it; the data stay.")
        sys.stdout.flush()
        stopped.wait()


@app.command()
def create(
    table: Name,
    dim: Annotated[int, typer.Option(help="Number of dimensions.")],
    metric: MetricOption = None,
    store: StoreOption = "halfvec",
    codes: Codes = None,
    column: Columns = None,
    id_type: Annotated[str, typer.Option(help="SQL type of the primary key `id`.")] = "bigint",
    transform: Annotated[
        int | None,
        typer.Option(
            help="0 for the original axes, else number of the rotation; "
            "left out, it is chosen from the data.",
            show_default=False,
        ),
    ] = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Create a table. Further columns as NAME:TYPE, e.g. --column title:text."""
    columns = dict(_split_pair(pair, ":", "--column") for pair in column or [])
    with _connect(dsn) as conn:
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
        _print_status(made, as_json)


@app.command()
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
    column: Columns = None,
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

    Columns of the file that the table has, too, are carried along; --column chooses them.
    """
    source = open_source(file, vector_column, id_column)
    unknown = set(column or ()) - set(source.columns)
    if unknown:
        raise CommandError(
            f"{file} has no usable column {', '.join(sorted(unknown))}",
            f"it has: {', '.join(source.columns) or 'none but its vectors'}",
        )
    with _connect(dsn) as conn:
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
        _print_json(answer | dataclasses.asdict(learned))
        return
    _out.print(f"{rows:,} rows written to {escape(table)}")
    if left_out:
        _out.print(f"not carried along: {escape(', '.join(left_out))}")
    _out.print(escape(str(learned)), soft_wrap=True)


@app.command()
def advise(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Name of the table.")
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
    decided: dict[str, Any] = {}
    if file is not None:
        statistics, decision = _advise_file(open_source(file, vector_column), metric or "cosine")
    else:
        assert table is not None
        with _connect(dsn) as conn:
            opened = _open(conn, table, schema, vectors)
            now = opened.status()
            statistics = _index_statistics(conn, now) or _stored_statistics(opened)
            decision = choose(statistics, metric=opened.metric)
            decided = dataclasses.asdict(now)
    if picture is not None:
        from pybq._cli.picture import draw_advice

        title = file.name if file is not None else str(table)
        draw_advice(picture, statistics, decision, title)
    _print_advice(decision, statistics, decided, picture, as_json)


@app.command()
def adopt(
    table: Name,
    column: Annotated[
        str | None,
        typer.Option(help="The column of vectors, if there are several.", show_default=False),
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
    with _connect(dsn) as conn:
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
        _print_json(dataclasses.asdict(made))
        return
    size = f"{made.nbytes / 1e6:,.1f} MB"
    if made.seconds is None:
        _out.print(f"index {escape(made.index)} was there already, {size}")
    else:
        _out.print(f"index {escape(made.index)} made in {made.seconds:.1f} s, {size}")
        _out.print(escape(made.statement or ""), soft_wrap=True)
    if made.comparison is not None:
        _print_comparison(made.comparison)
    for statement in made.drop:
        _out.print("When you are content, this drops the old index:")
        _out.print(f"  {escape(statement)};", soft_wrap=True, highlight=False)
    if made.drop_codes:
        _out.print("And these drop the column of codes, which the index does without:")
    for statement in made.drop_codes:
        _out.print(f"  {escape(statement)};", soft_wrap=True, highlight=False)


@app.command()
def search(
    table: Name,
    vector: Annotated[
        Path, typer.Option(help="The query: .npy of shape (dim,), or any file of vectors.")
    ],
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
    column: Columns = None,
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
    """Find the nearest rows."""
    queries = _read_queries(vector)
    if row is not None:
        if not -len(queries) <= row < len(queries):
            raise CommandError(f"no row {row} in {vector}", f"it has {len(queries)} rows")
        queries = queries[row][None]
    names = column or []
    taken = [name for name in names if name in ("id", "distance")]
    if as_json and taken:
        raise CommandError(f"column {taken[0]!r}: hits have a field of that name", "omit --json")
    with _connect(dsn) as conn:
        opened = _open(conn, table, schema, vectors)
        found = opened.search(
            queries,
            k,
            rerank=rerank or None,
            columns=names,
            where=where,
            recall=recall,
            probes=probes,
        )
    several = cast("list[list[Hit]]", found)
    if as_json:
        _print_json([[_as_dict(hit) for hit in hits] for hits in several])
        return
    for i, hits in enumerate(several):
        grid = Grid("id", "distance", *map(escape, names))
        if len(several) > 1:
            grid.title = f"query {i}"
        for hit in hits:
            cells = [str(hit.id), f"{hit.distance:.6f}", *(str(hit[name]) for name in names)]
            grid.add_row(*map(escape, cells))
        _out.print(grid)


@app.command()
def status(
    table: Name,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Say what the database knows about a table."""
    with _connect(dsn) as conn:
        _print_status(_open(conn, table, schema, vectors), as_json)


@app.command()
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
    given = None if queries is None else _read_queries(queries)
    with _connect(dsn) as conn:
        opened = _open(conn, table, schema, vectors)
        if opened.code_column is None:
            _print_comparison(compare_all(opened, k, sample, given), as_json)
            return
        measured = measure_recall(opened, given, k, sample)
    if as_json:
        _print_json({"k": k, "measured": [dataclasses.asdict(one) for one in measured]})
        return
    grid = Grid("rerank", f"recall@{k}", "ms per query")
    for one in measured:
        name = "codes alone" if one.rerank is None else f"{one.rerank:g}"
        grid.add_row(name, f"{one.recall:.3f}", f"{one.milliseconds:.2f}")
    _out.print(grid)


@app.command()
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
    given = None if queries is None else _read_queries(queries)
    with _connect(dsn) as conn:
        effort = _open(conn, table, schema, vectors).calibrate(wanted, k, given, sample)
    if as_json:
        _print_json({"recall": wanted, "k": k, **effort._asdict()})
        return
    probes = "as many lists as the index reads by itself"
    if effort.probes is not None:
        probes = f"probes {effort.probes}"
    _out.print(f"recall {wanted:g} of the {k} nearest: rerank {effort.rerank:g}, {probes}")


@app.command()
def bench(
    table: Name,
    k: Wanted = 10,
    sample: Sample = 100,
    rerank: Annotated[
        float, typer.Option(help="Of codes in a column: candidates as a multiple of k.")
    ] = RERANK,
    queries: Queries = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Time searches by each index, or by codes, and in exact order; say what they find."""
    given = None if queries is None else _read_queries(queries)
    with _connect(dsn) as conn:
        opened = _open(conn, table, schema, vectors)
        if opened.code_column is None:
            _print_comparison(compare_all(opened, k, sample, given), as_json)
            return
        found = bench_table(opened, given, k, sample, rerank)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    grid = Grid("search", f"recall@{k}", "ms, median", "ms, 95 %")
    for one in found.measured:
        times = f"{one.milliseconds:.2f}", f"{one.p95_milliseconds:.2f}"
        grid.add_row(one.method, f"{one.recall:.3f}", *times)
    _out.print(grid)
    _out.print(
        f"{found.rows:,} rows x {found.dim}, {found.queries} queries; "
        f"a round trip takes {found.round_trip_milliseconds:.2f} ms"
    )
    if not found.indexes:
        _out.print("no index: searches read every code")


@app.command()
def reencode(
    table: Name,
    transform: Annotated[
        int | None,
        typer.Option(
            help="0 for the original axes, else number of the rotation; "
            "left out, it is chosen from the data.",
            show_default=False,
        ),
    ] = None,
    vectors: Vectors = None,
    schema: Schema = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Make codes of another transform while the table is in use; goes on if interrupted."""
    with _connect(dsn) as conn:
        opened = _open(conn, table, schema, vectors)
        before = opened.status().transform
        rows = opened.reencode(transform, progress=False if as_json else None)
        learned = opened.status()
    if as_json:
        answer = {"rows": rows, "transform_before": before}
        _print_json(answer | dataclasses.asdict(learned))
        return
    if learned.transform == before:
        _out.print(f"nothing to do: transform {before} stays")
    else:
        _out.print(f"{rows:,} rows of {escape(table)} encoded anew")
    _out.print(escape(str(learned)), soft_wrap=True)


@app.command()
def doctor(
    check_indexes: Annotated[
        bool, typer.Option(help="Read every index in full; keeps writers out meanwhile.")
    ] = False,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Check server, extensions, kernels, codes and tables. Exit status 1 if anything is wrong."""
    with _connect(dsn) as conn:
        findings = doctors.examine(conn, check_indexes)
    healthy = all(finding.state != "error" for finding in findings)
    if as_json:
        found = [dataclasses.asdict(finding) for finding in findings]
        _print_json({"healthy": healthy, "findings": found})
    else:
        colors = {"ok": "green", "warning": "yellow", "error": "red"}
        grid = Grid("", "what", "found", "what to do")
        for finding in findings:
            state = f"[{colors[finding.state]}]{finding.state}[/]"
            grid.add_row(state, *map(escape, (finding.name, finding.text, finding.hint)))
        _out.print(grid)
    if not healthy:
        raise typer.Exit(1)


# -- the database ---------------------------------------------------------------------------


@contextmanager
def _connect(dsn: str | None) -> Iterator[psycopg.Connection[Any]]:
    """Connect to the database asked for, that of libpq's variables, or that of `pybq serve`."""
    if dsn is None and not any(name in os.environ for name in NAMING):
        dsn = _running_dsn(_default_data_dir())
        if dsn is None:
            raise CommandError(
                "no database named, and no server of pybq runs",
                "start one in another terminal with: pybq serve; or give --dsn, or set PYBQ_DSN",
            )
    try:
        conn = psycopg.connect(dsn or "", autocommit=True)
    except psycopg.OperationalError as error:
        raise CommandError(
            str(error).strip(), "check --dsn (or PYBQ_DSN, PGHOST), and that the server runs"
        ) from error
    with conn:
        yield conn


def _default_data_dir() -> Path:
    """Where `pybq serve` keeps its database: PYBQ_DATA_DIR, or the system's place for data."""
    if "PYBQ_DATA_DIR" in os.environ:
        return Path(os.environ["PYBQ_DATA_DIR"]).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/pybq/data")  # the server's user cannot look into root's home
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/pybq/data").expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "pybq/data"


def _running_dsn(data_dir: Path) -> str | None:
    """Connection string of the server that runs on a folder."""
    try:
        # PostgreSQL, src/include/utils/pidfile.h: line 4 port, line 5 socket folder
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        port, host = lines[3].strip(), lines[4].strip()
    except (OSError, IndexError):
        return None
    dsn = psycopg.conninfo.make_conninfo(host=host, port=port, user="postgres", dbname="postgres")
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return None  # left behind by a crash
    return dsn


def _open(
    conn: psycopg.Connection[Any], name: str, schema: str | None, column: str | None
) -> Table:
    try:
        return Table(conn, name, schema=schema, column=column)
    except TableError as error:
        known = ", ".join(each.table for each in run(find_all(BlockingDatabase(conn))))
        hint = f"tables of pybq here: {known}" if known else "make one with: pybq ingest, or create"
        raise CommandError(str(error).replace("; give dim to create it", ""), hint) from error


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
    identifier = name_table(name, schema).as_string(conn)
    with conn.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute("SELECT to_regclass(%s)", [identifier]).fetchone()
    if found == (None,):
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


def _read_queries(path: Path) -> np.ndarray[Any, Any]:
    """Vectors of a file, shape (q, dim); a .npy may hold a single one of shape (dim,)."""
    if path.suffix == ".npy":
        if not path.exists():
            raise FileNotFoundError(f"no file {path}")
        return np.atleast_2d(load_numpy(path))
    return np.concatenate([np.asarray(batch.vectors) for batch in open_source(path).batches()])


# -- arguments and printing -------------------------------------------------------------------


def _split_pair(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name or not value:
        raise CommandError(f"{option}: expected NAME{separator}VALUE, got {text!r}")
    return name, value


def _as_dict(hit: pybq.Hit) -> dict[str, Any]:
    return {"id": hit.id, "distance": hit.distance, **hit.columns}


def _print_status(table: Table, as_json: bool) -> None:
    if as_json:
        _print_json(dataclasses.asdict(table.status()))
    else:
        _out.print(escape(str(table.status())), soft_wrap=True)


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
        _print_json(advice | {"table": current})
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
    _out.print(grid)
    _out.print(f"[bold]{escape(decision.reason)}[/]")
    if decided and decided["transform"] is not None:
        used = bool(decided["transform"])
        axes = f"rotation {decided['transform']}" if used else "the original axes"
        if not decided["codes"]:  # the index has seen more than statistics of single coordinates
            _out.print(escape(f"The index uses {axes}. It chose {decided['reason']}."))
        else:
            agrees = "as it would be decided now"
            if used != decision.rotate:
                agrees = "now it would differ, and pybq reencode changes it"
            _out.print(f"The table uses {axes}: {agrees}.")
    if picture is not None:
        _out.print(f"picture: {escape(str(picture))}")


def _print_comparison(comparison: Comparison, as_json: bool = False) -> None:
    if as_json:
        _print_json(dataclasses.asdict(comparison))
        return
    grid = Grid("index", "method", f"recall@{comparison.k}", "ms, median", "MB", "setting")
    for one in comparison.indexes:
        recall = "not used" if one.recall is None else f"{one.recall:.3f}"
        milliseconds = "" if one.milliseconds is None else f"{one.milliseconds:.2f}"
        cells = one.name, one.method, recall, milliseconds, f"{one.nbytes / 1e6:,.1f}", one.effort
        grid.add_row(*map(escape, cells))
    grid.add_row("none", "exact", "1.000", f"{comparison.exact_milliseconds:.2f}", "", "")
    _out.print(grid)
    if all(one.method != "bq" for one in comparison.indexes):
        _out.print("no index of bq: pybq adopt makes one")
    _out.print(f"{comparison.queries} queries, in turn; a row that was the query is not counted")


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), default=str, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """What JSON can say: no NaN, no numpy."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    return value
