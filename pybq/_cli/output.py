"""What commands print: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import numpy as np
import psycopg
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pybq._tables.comparison import Comparison
from pybq._tables.table import Table

out = Console()


err = Console(stderr=True)


def fail(error: Exception, as_json: bool) -> NoReturn:
    message, hint = str(error).strip() or type(error).__name__, getattr(error, "hint", "")
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        message = error.diag.message_primary
        hint = error.diag.message_hint or error.diag.message_detail or ""
    if as_json:
        print_json({"error": message, "hint": hint or None, "type": type(error).__name__})
    else:
        err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        if hint:
            err.print(f"[bold]hint:[/] {escape(hint)}", soft_wrap=True)
    raise typer.Exit(1)


def print_status(table: Table, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(table.status()))
    else:
        out.print(escape(str(table.status())), soft_wrap=True)


def print_comparison(comparison: Comparison, as_json: bool = False) -> None:
    if as_json:
        print_json(dataclasses.asdict(comparison))
        return
    grid = Grid("index", "method", f"recall@{comparison.k}", "ms, median", "MB", "setting")
    for one in comparison.indexes:
        recall = "not used" if one.recall is None else f"{one.recall:.3f}"
        milliseconds = "" if one.milliseconds is None else f"{one.milliseconds:.2f}"
        cells = one.name, one.method, recall, milliseconds, f"{one.nbytes / 1e6:,.1f}", one.effort
        grid.add_row(*map(escape, cells))
    grid.add_row("none", "exact", "1.000", f"{comparison.exact_milliseconds:.2f}", "", "")
    out.print(grid)
    if all(one.method != "bq" for one in comparison.indexes):
        out.print("no index of bq: pybq adopt makes one")
    out.print(f"{comparison.queries} queries, in turn; a row that was the query is not counted")


def print_json(value: Any) -> None:
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
