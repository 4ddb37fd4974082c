"""What type checkers know of the public names: read by mypy (make lint), never run.

An ignored error that is none is an error itself (warn_unused_ignores).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars
import psycopg
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import assert_type

import pybq
from pybq.hybrid import hybrid
from pybq.sqlalchemy import BQVec, bq_encode, nearest


def names() -> None:
    assert_type(pybq.Quantizer(3).encode([[1.0, 2.0, 3.0]]), NDArray[np.uint8])
    error: pybq.Error = pybq.RowError(1, 2, "reason")
    value: ValueError = pybq.RowError(1, 2, "reason")
    runtime: RuntimeError = pybq.TableError(str(error) + str(value))
    print(runtime, pybq.Tabel)  # type: ignore[attr-defined]


def blocking(conn: psycopg.Connection[Any], one: list[float], some: list[list[float]]) -> None:
    table = pybq.Table(conn, "items", dim=3, columns={"title": "text"}, schema="shop")
    assert_type(pybq.Table.open(conn, "items", column="v"), pybq.Table)
    assert_type(pybq.Table.create(conn, "items", 3, store=None), pybq.Table)
    pybq.Table(conn, "items", dimension=3)  # type: ignore[call-arg]
    pybq.Table(conn, "items", 3, "hamming")  # type: ignore[arg-type]
    pybq.Table.create(conn, "items", 3, column="v")  # type: ignore[call-arg]
    assert_type(table.connection, psycopg.Connection[Any])

    assert_type(table.ingest(range(2), some, {"title": ["a", "b"]}), int)
    assert_type(table.load("vectors.npy", resume=True), int)
    table.load("vectors.npy", resum=True)  # type: ignore[call-arg]
    table.ingest(range(2), some, on_conflict="replace")  # type: ignore[arg-type]
    assert_type(table.create_index(["title"], recall=0.9), None)
    assert_type(table.delete([1]), int)
    assert_type(table.reencode(7), int)
    assert_type(table.drop(), None)

    assert_type(table.get([1, 2], vectors=True), list[pybq.Row | None])
    assert_type(table.count(), int)
    assert_type(table.calibrate(0.9), pybq.Effort)
    assert_type(table.status(), pybq.Status)
    assert_type(table.statistics(), pybq.Statistics)


def searches(table: pybq.Table, one: list[float], some: list[list[float]], any: ArrayLike) -> None:
    assert_type(table.search(one, output="hits"), list[pybq.Hit])
    assert_type(table.search(None, text="words", weights=(1, 2), depth=9), list[pybq.Hit])
    assert_type(table.search(some, text=["a", "b"], text_column="body"), list[list[pybq.Hit]])
    assert_type(table.search(one, text="words")[0].score, float | None)
    assert_type(table.create_text_index(["title", "body"], language="simple"), None)
    assert_type(table.search(some, 5, rerank=None, columns=["title"]), list[list[pybq.Hit]])
    assert_type(table.search(any), list[pybq.Hit] | list[list[pybq.Hit]])
    array = np.zeros(3, np.float32)
    assert_type(table.search(array, k=3), list[pybq.Hit] | list[list[pybq.Hit]])
    assert_type(table.search(one, where="id < 3", recall=0.9)[0].distance, float)
    assert_type(table.search(any, output="numpy"), pybq.Arrays)
    assert_type(table.search(any, output="polars", k=3), polars.DataFrame)
    table.search(any, output="excel")  # type: ignore[call-overload]
    table.search(any, were="id < 3")  # type: ignore[call-overload]


async def asynchronous(conn: psycopg.AsyncConnection[Any], one: list[float]) -> None:
    table = await pybq.AsyncTable.open(conn, "items", dim=3)
    assert_type(table, pybq.AsyncTable)
    assert_type(await pybq.AsyncTable.create(conn, "items", 3, codes=True), pybq.AsyncTable)
    assert_type(table.connection, psycopg.AsyncConnection[Any])
    assert_type(await table.ingest(range(1), [one]), int)
    assert_type(await table.search(one), list[pybq.Hit])
    assert_type(await table.search([one]), list[list[pybq.Hit]])
    assert_type(await table.search(one, output="numpy"), pybq.Arrays)
    assert_type(await table.get([1]), list[pybq.Row | None])
    assert_type(await table.count(), int)
    await table.load("vectors.npy", resum=True)  # type: ignore[call-arg]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[pybq.Code] = mapped_column(BQVec(3))


def models(one: list[float], table: sa.Table) -> None:
    found = nearest(Item, code=Item.code, query=one)
    assert_type(found, sa.Select[Item, float])
    both = hybrid(Item, vector=Item.code, query=one, text=Item.code, words="a")
    assert_type(both, sa.Select[Item, float, int | None, int | None])
    nearest(table, code=table.c.code, vector=table.c.embedding, query=sa.bindparam("query"))
    nearest(Item, code="code", query=one)  # type: ignore[call-overload]
    assert_type(bq_encode(one, 1), sa.ColumnElement[pybq.Code])
