"""Random queries have the answers of a sort, judged by distance: `--random-queries 5000` asks more.

They are the same in every run; `--hypothesis-seed` says which others.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexlib import (
    CODES,
    VECTOR_COLUMNS,
    Column,
    check,
    clustered_vectors,
    create,
    explain,
    of_columns,
    prepare,
    random_vectors,
)
from shared import SEED, Conn, Vectors

DIM = 6  # few codes, so that many are equal
ROWS = 400
LISTS = 9


@dataclass(frozen=True)
class Question:
    """A query of {items} by {d}, the distance from {q}, and how it is asked.

    With `limit` and `offset` its rows begin with (id, distance), and any of equally far ones will
    do; else all that comes follows from the distances, or from an order without ties.
    """

    text: str
    operand: int = 0
    operator: int = 0
    where: str = "true"
    part: tuple[int | None, int] | None = None  # LIMIT and OFFSET of rows (id, distance)
    steps: tuple[int, ...] = ()  # of a cursor
    arguments: tuple[Any, ...] = ()  # of a prepared statement
    must_use_index: bool = True
    recall: float = 1
    order: str = "strict_order"
    work_mem: str = "4MB"


# -- which queries there are ------------------------------------------------------------------

NUMBERS = st.integers(-1, 10)
LABELS = st.sampled_from(["a", "b", "nobody"])
LIMITS = st.sampled_from([0, 1, 2, 5, 10, 30, 64, 65, 200, 2 * ROWS, None])


def arrays(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """What stands between the brackets of an array."""
    return st.lists(st.just("NULL") | values.map(repr), max_size=4).map(", ".join)


def conditions() -> st.SearchStrategy[str]:
    signs = st.sampled_from(["=", "<", "<=", ">", ">=", "<>"])
    simple = st.one_of(
        # of the index's own columns
        st.builds("other {} {}".format, signs, NUMBERS),
        st.builds("other = ANY (ARRAY[{}]::int[])".format, arrays(NUMBERS)),
        st.builds("other BETWEEN {} AND {}".format, NUMBERS, NUMBERS),
        st.builds("label = '{}'".format, LABELS),
        st.builds("label = ANY (ARRAY[{}]::text[])".format, arrays(LABELS)),
        st.sampled_from(["other IS NULL", "other IS NOT NULL", "label IS NULL"]),
        # of others
        st.builds("id %% 7 = {}".format, st.integers(0, 6)),
        st.builds("id {} {}".format, signs, st.integers(0, ROWS)),
        st.builds("{{d}} > {}".format, st.sampled_from([-1, 0, 0.5, 1, 3])),
        st.sampled_from(["other IS DISTINCT FROM 3", "label > 'a'", "false"]),
    )
    either = st.builds("({} OR {})".format, simple, simple)
    neither = st.builds("NOT ({})".format, simple)
    # NOT of this is a question that no index of distances answers
    there = st.just("{name} IS NOT NULL")
    parts = st.lists(simple | either | neither | there, max_size=3)
    return parts.map(lambda found: " AND ".join(found) or "true")


def cut(limit: int | None, offset: int) -> str:
    return f" OFFSET {offset}" + (f" LIMIT {limit}" if limit is not None else "")


@st.composite
def parts_of_the_order(draw: st.DrawFn) -> Question:
    part = draw(LIMITS), draw(st.sampled_from([0, 0, 0, 1, 10, 100, 1000]))
    columns = draw(st.sampled_from(["id, {d}", "id, {d}, other, label", "id"]))
    where = draw(conditions())
    text = f"SELECT {columns} FROM {{items}} WHERE {where} ORDER BY {{d}}{cut(*part)}"
    recall = draw(st.sampled_from([1, 1, 1, 0, 0.5]))
    return Question(text, where=where, part=part, recall=recall)


@st.composite
def cursors(draw: st.DrawFn) -> Question:
    where = draw(conditions())
    back = draw(st.booleans())
    sizes = st.sampled_from([1, 2, 7, 64, 65, 300, 1000])
    steps = draw(
        st.lists(sizes | sizes.map(lambda n: -n) if back else sizes, min_size=1, max_size=6)
    )
    text = f"SELECT id, {{d}} FROM {{items}} WHERE {where} ORDER BY {{d}}"
    return Question(text, where=where, part=(None, 0), steps=tuple(steps))


@st.composite
def prepared_statements(draw: st.DrawFn) -> Question:
    """$1 is the operand, of which several come one after the other, NULL among them."""
    where, value = draw(
        st.sampled_from(
            [("other = $2", "int"), ("other = ANY ($2)", "int[]"), ("label = $2", "text"),
             ("other >= $2 AND label = 'a'", "int"), ("id < $2", "int"), ("other <> $2", "int")]
        )
    )  # fmt: skip
    of_type = {"int": NUMBERS.map(str), "int[]": arrays(NUMBERS).map("ARRAY[{}]".format)}
    values = st.just("NULL") | of_type.get(value, LABELS.map(repr))
    arguments = draw(
        st.lists(st.builds("{}::{}".format, values, st.just(value)), min_size=1, max_size=4)
    )
    limit = draw(st.sampled_from([1, 10, 100]))
    text = f"SELECT id, {{d}} FROM {{items}} WHERE {where} ORDER BY {{d}} LIMIT {limit}"
    return Question(text, where=where, part=(limit, 0), arguments=tuple(arguments))


WHOLE = [
    # further columns order ties
    "SELECT id, {d} FROM {items} WHERE {where} ORDER BY {d}, id",
    "SELECT id, {d} FROM {items} WHERE {where} ORDER BY {d}, other DESC NULLS LAST, id DESC",
    "SELECT DISTINCT ON ({d}) {d}, id FROM {items} WHERE {where} ORDER BY {d}, id",
    "SELECT DISTINCT {d} AS d FROM {items} WHERE {where} ORDER BY d",
    "SELECT {d} AS d, count(*), min(id) FROM {items} WHERE {where} GROUP BY d ORDER BY d",
    "SELECT {d} AS d FROM {items} UNION SELECT {d} FROM {items} WHERE {where} ORDER BY d",
    # windows
    "SELECT {d}, rank() OVER w, count(*) OVER w, lag({d}) OVER w FROM {items} WHERE {where}"
    " WINDOW w AS (ORDER BY {d}) ORDER BY {d}",
    "SELECT {d}, row_number() OVER w, first_value({d}) OVER w FROM {items} WHERE {where}"
    " WINDOW w AS (ORDER BY {d} ROWS 2 PRECEDING) ORDER BY {d}",
    "SELECT id, {d}, rank() OVER (PARTITION BY other ORDER BY {d}) FROM {items} WHERE {where}"
    " ORDER BY {d}, id",
    # nearest rows as part of others
    "SELECT count(*), min(d), max(d) FROM"
    " (SELECT {d} AS d FROM {items} WHERE {where} ORDER BY d LIMIT 20) AS near WHERE true",
    "WITH near AS MATERIALIZED (SELECT {d} AS d FROM {items} WHERE {where} ORDER BY d LIMIT 30)"
    " SELECT d, (SELECT count(*) FROM near AS n WHERE n.d <= near.d) FROM near ORDER BY d",
    "(SELECT {d} AS d FROM {items} WHERE {where} ORDER BY d LIMIT 9) UNION ALL"
    " (SELECT {d} FROM {items} ORDER BY {d} LIMIT 4) ORDER BY d",
    "SELECT ARRAY(SELECT {d} FROM {items} WHERE {where} ORDER BY {d} LIMIT 12) WHERE true",
    # joins
    "SELECT {d}, word FROM {items} JOIN (VALUES (1, 'a'), (2, 'b'), (2, 'c')) AS words(n, word)"
    " ON n = other WHERE {where} ORDER BY {d}, word",
    "SELECT count(*) FROM {items} WHERE id IN"
    " (SELECT id FROM {items} WHERE {where} ORDER BY {d}, id LIMIT 25)",
    "SELECT n, near.d FROM (VALUES (1, {q}), (2, {other}), (3, NULL), (4, {q})) AS queries(n, q),"
    " LATERAL (SELECT items.{name} {operator} queries.q AS d FROM {items} WHERE {where}"
    " ORDER BY items.{name} {operator} queries.q LIMIT 7) AS near WHERE true ORDER BY n, d",
    "SELECT n, near.d FROM generate_series(1, 5) AS n LEFT JOIN LATERAL"
    " (SELECT {d} AS d FROM {items} WHERE other = n AND {where} ORDER BY {d} LIMIT 3) AS near"
    " ON true ORDER BY n, d",
]  # fmt: skip


@st.composite
def whole_answers(draw: st.DrawFn) -> Question:
    text, where = draw(st.sampled_from(WHOLE)), draw(conditions())
    text = text.replace("{where}", where)
    if text.endswith((" {d}", " d", " id", " DESC", " word")):
        text += cut(draw(LIMITS), draw(st.sampled_from([0, 0, 3, 50])))
    return Question(text, where=where, must_use_index="LATERAL (SELECT items" in text)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    question = draw(
        parts_of_the_order() | cursors() | prepared_statements() | whole_answers() | whole_answers()
    )
    return replace(
        question,
        operand=draw(st.integers(0, 9)),
        operator=draw(st.integers(0, 3)),
        order=draw(st.sampled_from(["strict_order", "relaxed_order"])),
        work_mem=draw(st.sampled_from(["4MB", "64kB"])),
    )


# -- how they are asked and judged ---------------------------------------------------------------


class Asker:
    """A table with an index, and operands to ask for: asks by the index and by a sort."""

    def __init__(self, conn: Conn, column: Column) -> None:
        conn.autocommit = True
        conn.prepare_threshold = None  # plans are of the settings they are executed with
        self.conn, self.column = conn, column
        rng = np.random.default_rng(SEED)
        prepare(conn, column)
        vectors = clustered_vectors(rng, ROWS, DIM)
        self.fill_table(vectors)
        zero = np.zeros((1, DIM), np.float32)
        random, stored = random_vectors(rng, 3, DIM), vectors[vectors.any(axis=1)]
        parts = [random, zero, stored[:2], -stored[:1], 1e-3 * random[:1], 1e3 * random[:1]]
        self.operands = np.vstack(parts).astype(np.float32)
        self.asked: Counter[bool] = Counter()  # how often the index was used, and was not

    def fill_table(self, vectors: Vectors) -> None:
        """Rows come and go before and after the index is made; some are there twice."""
        conn, column = self.conn, self.column
        create(conn, vectors, column=column)
        conn.execute("ALTER TABLE items ADD label text")
        conn.execute("UPDATE items SET label = CASE id % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END")
        conn.execute("UPDATE items SET other = NULL WHERE id % 11 = 4")
        key = f"{column.key}, other, label"
        conn.execute(f"CREATE INDEX by_distance ON items USING bq ({key}) WITH (lists = {LISTS})")
        conn.execute("DELETE FROM items WHERE id % 9 = 2")
        conn.execute("VACUUM items")
        again = f"SELECT id + 1000, {column.name}, other, label FROM items WHERE id % 4 = 1"
        conn.execute(f"INSERT INTO items {again}")
        conn.execute("DELETE FROM items WHERE id % 10 = 3")
        conn.execute("ANALYZE items")
        check(conn, "by_distance")

    def ask(self, question: Question) -> None:
        """Assert that the index answers as a sort does."""
        with self.conn.transaction(force_rollback=True):
            self.set(
                work_mem=question.work_mem,
                **{"bq.iterative_scan": question.order, "bq.recall": question.recall},
                plan_cache_mode="force_generic_plan",
            )
            if question.arguments:
                self.ask_prepared(question)
            elif question.part is None:
                self.ask_whole(question)
            else:
                parameters = self.parameters(question)
                with self.by_index():
                    self.assert_used(question, parameters)
                    if question.steps:
                        found = self.fetch(question, parameters)
                    else:
                        found = self.run(question, parameters)
                self.judge(found, question, parameters)

    def ask_whole(self, question: Question) -> None:
        parameters = self.parameters(question)
        with self.by_index():
            used = self.assert_used(question, parameters)
            found = self.run(question, parameters)
        with self.by_sort():
            expected = self.run(question, parameters, self.indexed if used else "items")
        assert [*map(comparable, found)] == [*map(comparable, expected)]

    def ask_prepared(self, question: Question) -> None:
        operator = self.operator(question)
        kind = (
            {"<~>": "bqvec"}.get(operator, "bqquery") if self.column == CODES else self.column.type
        )
        value = question.arguments[0].partition("::")[2]
        text = self.write(question.text, question).replace("%(q)s", "$1")
        self.conn.execute(cast(Any, f"PREPARE near ({kind}, {value}) AS {text}"))
        for i, argument in enumerate(question.arguments):
            one = replace(
                question,
                operand=question.operand + i,
                where=question.where.replace("$2", argument),
            )
            parameters = self.parameters(one)
            execute = f"EXECUTE near ('{parameters['q'].to_text()}', {argument})"
            with self.by_index():
                self.assert_used(replace(one, text=execute), None)
                found = self.conn.execute(cast(Any, execute)).fetchall()
                nothing = self.conn.execute(cast(Any, f"EXECUTE near (NULL, {argument})"))
            everything = self.judge(found, one, parameters)
            limit, _ = question.part or (None, 0)
            assert len(nothing.fetchall()) == len(everything[:limit])
        self.conn.execute("DEALLOCATE near")

    def fetch(self, question: Question, parameters: Any) -> list[Any]:
        """Go to and fro in the order; each row keeps its place."""
        text = self.write(question.text, question)
        self.conn.execute(cast(Any, f"DECLARE c SCROLL CURSOR FOR {text}"), parameters)
        rows: dict[int, Any] = {}
        place = 0  # of the row fetched last
        for n in question.steps:
            direction = "FORWARD" if n > 0 else "BACKWARD"
            found = self.conn.execute(f"FETCH {direction} {abs(n)} FROM c").fetchall()
            step = 1 if n > 0 else -1
            for row in found:
                place += step
                assert comparable(rows.setdefault(place, row)) == comparable(row)
            if len(found) < abs(n):
                # it stands before the first or after the last one
                place = 0 if n < 0 else max(rows, default=0) + 1
        self.conn.execute("CLOSE c")
        assert [*rows] == [*range(1, len(rows) + 1)]
        return [*rows.values()]

    def judge(self, found: list[Any], question: Question, parameters: Any) -> list[Any]:
        """Compare rows with those of a sort, as far as ties allow; returns all of them."""
        text = f"SELECT id, {{d}} FROM {{items}} WHERE {question.where} ORDER BY 2"
        with self.by_sort():
            everything = self.run(replace(question, text=text), parameters, self.indexed)
        distances = dict(everything)
        ids = [row[0] for row in found]
        assert len(set(ids)) == len(ids) and set(ids) <= set(distances)
        assert all(comparable(row[1]) == comparable(distances[row[0]]) for row in found if row[1:])
        has_order = all(d == d for d in distances.values())
        along = [distances[i] for i in ids]
        limit, offset = question.part or (None, 0)
        if question.steps:
            limit = len(found)
            assert len(found) >= min(len(everything), max(0, question.steps[0]))
        expected = [d for _, d in everything[offset:]][:limit]
        if question.recall == 1:
            assert len(found) == len(expected)
            assert along == expected or not has_order
        else:
            assert len(found) <= len(expected)
            assert along == sorted(along) or not has_order or question.order == "relaxed_order"
        return everything

    # -- statements

    def operator(self, question: Question) -> str:
        return self.column.operators[question.operator % len(self.column.operators)]

    def parameters(self, question: Question) -> dict[str, Any]:
        operator = self.operator(question)
        q, other = (
            self.column.operand(
                operator, self.operands[(question.operand + i) % len(self.operands)]
            )
            for i in (0, 1)
        )
        return {"q": q, "other": other}

    def write(self, text: str, question: Question, items: str = "items") -> str:
        name, operator = self.column.name, self.operator(question)
        d = f"items.{name} {operator} %(q)s"
        return text.format(
            items=items, d=d, name=name, operator=operator, q="%(q)s", other="%(other)s"
        )

    @property
    def indexed(self) -> str:
        """In the place of the table, where the index is not used: the rows that it has."""
        has = f"{self.column.name} IS NOT NULL"
        if "cosine" in self.column.opclass:
            has = f"vector_norm({self.column.name}::vector) > 0"
        return f"(SELECT * FROM items WHERE {has}) AS items"

    def run(self, question: Question, parameters: Any, items: str = "items") -> list[Any]:
        text = self.write(question.text, question, items)
        return self.conn.execute(cast(Any, text), parameters).fetchall()

    def assert_used(self, question: Question, parameters: Any) -> bool:
        """Whether the index is used; wherever it is all that would do, it must be."""
        plan = explain(self.conn, self.write(question.text, question), parameters)
        used = "Index Scan using by_distance" in plan
        self.asked[used] += 1
        # before 17 the planner drops arrays, or the order, of columns after the first
        drops = "ANY" in question.where and self.conn.info.server_version < 170000
        assert used or not question.must_use_index or drops or "One-Time Filter" in plan, plan
        return used

    def set(self, **values: Any) -> None:
        for name, value in values.items():
            self.conn.execute(cast(Any, f"SET LOCAL {name} = '{value}'"))

    @contextlib.contextmanager
    def by_index(self) -> Iterator[None]:
        with self.conn.transaction():
            self.set(enable_seqscan="off", enable_indexscan="on")
            yield

    @contextlib.contextmanager
    def by_sort(self) -> Iterator[None]:
        with self.conn.transaction():
            self.set(enable_seqscan="on", enable_indexscan="off")
            yield


def comparable(value: Any) -> Any:
    """The same for what is the same, though NaN equals nothing."""
    if isinstance(value, (tuple, list)):
        return [comparable(v) for v in value]
    return "NaN" if value != value else value


@of_columns(CODES, *VECTOR_COLUMNS)
def test_random_queries(conn: Conn, pytestconfig: pytest.Config, column: Column) -> None:
    asker = Asker(conn, column)
    seed = pytestconfig.getoption("--hypothesis-seed")
    number = pytestconfig.getoption("--random-queries")

    @hypothesis.seed(SEED if seed is None else int(seed))
    @settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(questions())
    def ask(question: Question) -> None:
        asker.ask(question)

    ask()
    print(f"{number} queries, seed {seed or SEED}; by the index: {asker.asked[True]} statements")
    assert asker.asked[True] > 2 * asker.asked[False]
