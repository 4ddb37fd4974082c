"""Documents in rows of a table, and filters of frameworks: a filter means what Python says."""

from __future__ import annotations

import asyncio
import datetime
import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn

import pybq
from pybq._documents.dicts import to_filter
from pybq._documents.documents import (
    Documents,
    count,
    find,
    find_with_vectors,
    put,
    read,
    remove,
    write,
)
from pybq._documents.filters import Compare, Every, Filter, Not, Some
from pybq._documents.opening import open_table

pytestmark = [
    pytest.mark.usefixtures("bq_pgvector"),
    pytest.mark.autocommit,
    pytest.mark.once,
]

DIM = 4
HOSTILE = "x' OR true; --\"%s%(a)s{}"

# What documents know: of each field, values of several kinds, null, and nothing at all.
METADATA: list[dict[str, Any]] = [
    {"n": 1, "s": "apple", "b": True, "l": ["a", "b"]},
    {"n": 2.5, "s": "Pear", "b": False, "l": []},
    {"n": -3, "s": "50% off_", "b": None, "l": [1, 2]},
    {"n": 10**12, "s": "", HOSTILE: HOSTILE, "l": None},
    {"n": "1", "s": None, "l": "a"},
    {"s": "zebra", "n": None, "o": {"deep": [1]}},
    {},
]

ORDER = {
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
}


def kind(value: Any) -> type:
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, (int, float)) else type(value)


def equal(a: Any, b: Any) -> bool:
    return bool(kind(a) is kind(b) and a == b)


def like(text: str, pattern: str) -> bool:
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == "%":
        return like(text, rest) or bool(text) and like(text[1:], pattern)
    return bool(text) and (head in ("_", text[0])) and like(text[1:], rest)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def holds(filter: Filter, metadata: dict[str, Any]) -> bool:
    """The judge."""
    if isinstance(filter, Not):
        return not holds(filter.part, metadata)
    if isinstance(filter, Every):
        return all(holds(part, metadata) for part in filter.parts)
    if isinstance(filter, Some):
        return any(holds(part, metadata) for part in filter.parts)
    assert isinstance(filter, Compare)
    there, wanted = metadata.get(filter.field), filter.value
    match filter.operator:
        case "eq":
            return equal(there, wanted)
        case "ne":
            return not equal(there, wanted)
        case "in":
            return any(equal(there, each) for each in wanted)
        case "nin":
            return not any(equal(there, each) for each in wanted)
        case "exists":
            return (filter.field in metadata) == wanted
        case "empty":
            return there in (None, [])
        case "contains":
            return isinstance(there, list) and any(equal(each, wanted) for each in there)
        case "like" | "ilike" | "has_text" | "has_text_any_case":
            if there is None:
                return False
            text, pattern = as_text(there), wanted
            if filter.operator in ("ilike", "has_text_any_case"):
                text, pattern = text.lower(), pattern.lower()
            return like(text, pattern) if "like" in filter.operator else pattern in text
        case order:
            return kind(there) is kind(wanted) and ORDER[order](there, wanted)


TESTS: list[Filter] = [
    *(Compare("n", o, v) for o in ("eq", "ne", *ORDER) for v in (1, 2.5, -3, 10**12, "1", 0)),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("eq", "ne", *ORDER) for v in ("apple", "", "50% off_")),  # type: ignore[arg-type]
    *(Compare("b", o, v) for o in ("eq", "ne") for v in (True, False, None, 1)),  # type: ignore[arg-type]
    *(Compare(f, o, None) for f in ("n", "s", "none", "l") for o in ("eq", "ne", "empty")),  # type: ignore[arg-type]
    *(Compare("n", o, v) for o in ("in", "nin") for v in ([], [1, 2.5], [None], ["1", None, 1])),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("in", "nin") for v in (["apple", "zebra"], [""], [1])),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("like", "ilike") for v in ("%p%", "P%", "50% %", "", "pear")),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("has_text", "has_text_any_case") for v in ("P", "% o", "_")),  # type: ignore[arg-type]
    *(Compare(f, "exists", v) for f in ("n", "b", "none", HOSTILE) for v in (True, False)),
    *(Compare("l", "contains", v) for v in ("a", 1, "1", "c")),
    Compare("l", "eq", ["a", "b"]),
    Compare("l", "eq", ["b", "a"]),
    Compare("o", "eq", {"deep": [1]}),
    Compare(HOSTILE, "eq", HOSTILE),
    Compare("s", "eq", HOSTILE),
    Compare(HOSTILE, "has_text", 'OR true; --"%s'),
]
TREES: list[Filter] = [
    Every([]),
    Some([]),
    Not(Some([])),
    Every([Compare("n", "gt", 0), Compare("s", "ne", "Pear")]),
    Some([Compare("n", "gt", 2), Not(Compare("s", "like", "%a%"))]),
    Not(Every([Compare("n", "lt", 5), Not(Compare("b", "eq", True))])),
    Not(Not(Compare("n", "lt", 5))),
    Every(
        [Some([Compare("n", "eq", 1), Compare("n", "eq", "1")]), Not(Compare("b", "exists", True))]
    ),
]


@pytest.fixture
def documents(conn: Conn) -> Documents:
    documents = Documents(open_table(conn, "docs", DIM, "l2"))
    n = len(METADATA)
    vectors = np.eye(n, DIM, dtype=np.float32) + np.arange(n)[:, None]
    ids = documents.do(
        put, [str(i) for i in range(n)], [f"text {i}" for i in range(n)], METADATA, vectors
    )
    assert ids == [str(i) for i in range(n)]
    return documents


def test_filters_on_json_mean_what_python_says(documents: Documents) -> None:
    for filter in (*TESTS, *TREES):
        expected = {str(i) for i, each in enumerate(METADATA) if holds(filter, each)}
        assert {each.id for each in documents.do(read, filter=filter)} == expected, filter
        assert documents.do(count, filter) == len(expected), filter
        found = documents.do(find, [1] * DIM, 10, filter)
        assert {each.id for each in found} == expected, filter


# The same values in columns of their own, where they can be.
COLUMNS = {"n": "numeric", "s": "text", "b": "boolean", "i": "smallint", "f": "real",
           "l": "text[]", "m": "int[]", "day": "date", "who": "uuid", HOSTILE: "varchar(99)",
           "o": "jsonb"}  # fmt: skip
DAY, WHO = datetime.date(2026, 11, 22), uuid.UUID(int=5)
ROWS: list[dict[str, Any]] = [
    {"n": 1, "s": "apple", "b": True, "i": 7, "f": 0.5, "l": ["a", "b"], "day": DAY, "who": WHO},
    {"n": 2.5, "s": "Pear", "b": False, "i": -7, "l": [], "day": datetime.date(2025, 1, 1)},
    {"s": "50% off_", "i": 0, "f": -1.0, HOSTILE: HOSTILE, "o": {"deep": [1]}},
    {"f": 0.1, "m": [1, 2]},
]


@pytest.fixture
def own(conn: Conn) -> Documents:
    """A table of one's own, with a key of integers that it makes, and no JSON for metadata."""
    columns = ", ".join(
        f'"{name.replace(chr(34), chr(34) * 2)}" {type_}' for name, type_ in COLUMNS.items()
    )
    conn.execute(
        f"CREATE TABLE own (nr int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text,"
        f" v vector({DIM}), {columns})".encode()
    )
    documents = Documents(pybq.Table(conn, "own", metric="l2"), content="body")
    vectors = np.arange(len(ROWS) * DIM, dtype=np.float32).reshape(-1, DIM)
    ids = documents.do(put, None, ["a", "b", "c", "d"], ROWS, vectors)
    assert ids == ["1", "2", "3", "4"]
    return documents


OF_COLUMNS: list[Filter] = [
    *(
        Compare(f, o, v)
        for f in ("n", "i", "f")
        for o in ("eq", "ne", *ORDER)
        for v in (1, 0.5, 0.1, 1e300, 2**40)
    ),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("eq", "ne", *ORDER) for v in ("apple", "50% off_")),  # type: ignore[arg-type]
    *(Compare("b", o, v) for o in ("eq", "ne") for v in (True, None)),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("in", "nin") for v in ([], ["apple", None], ["Pear", "x"])),  # type: ignore[arg-type]
    *(Compare("f", o, v) for o in ("in", "nin") for v in ([0.1], [0.1, 0.5, -1], [1e-300])),  # type: ignore[arg-type]
    *(Compare("i", o, v) for o in ("in", "nin") for v in ([7, 2**40], [0, -7], [0.0, None])),  # type: ignore[arg-type]
    *(Compare("s", o, v) for o in ("like", "ilike") for v in ("P%", "50% %")),  # type: ignore[arg-type]
    *(Compare("s", o, "P") for o in ("has_text", "has_text_any_case")),  # type: ignore[arg-type]
    *(Compare("day", o, DAY) for o in ("eq", *ORDER)),  # type: ignore[arg-type]
    *(Compare("l", "contains", v) for v in ("a", "c")),
    *(Compare(f, "eq", v) for f, v in (("l", ["a", "b"]), ("l", []), ("m", [1, 2]))),
    Compare("o", "eq", {"deep": [1]}),
    Compare("who", "eq", WHO),
    Compare(HOSTILE, "eq", HOSTILE),
    Compare("s", "eq", HOSTILE),
    *(Compare(f, "empty") for f in ("l", "n", "o")),
    Not(Compare("n", "gt", 1)),
]


def test_filters_on_columns_mean_what_python_says(own: Documents) -> None:
    for filter in (*OF_COLUMNS, *TREES[:4]):
        expected = {str(i) for i, each in enumerate(ROWS, 1) if holds(filter, each)}
        assert {each.id for each in own.do(read, filter=filter)} == expected, filter
        assert {each.id for each in own.do(find, [1] * DIM, 10, filter)} == expected, filter


def test_texts_stand_for_values_of_columns(own: Documents) -> None:
    """Frameworks have dates and uuids as texts; the key and the content are fields, too."""
    for field, value in (("day", "2026-11-22"), ("who", str(WHO)), ("body", "a"), ("nr", 1)):
        assert [e.id for e in own.do(read, filter=Compare(field, "eq", value))] == ["1"]
        assert [e.id for e in own.do(read, filter=Compare(field, "in", [value]))] == ["1"]


def test_conditions_on_columns_go_into_the_index(conn: Conn) -> None:
    table = pybq.Table.create(
        conn, "t", DIM, columns={"content": "text", "tenant": "int", "lang": "text"}
    )
    rng = np.random.default_rng(7)
    n = 3000
    langs = ["en", "de", "fr"] * (n // 3)
    values = {"content": ["x"] * n, "tenant": np.arange(n) % 9, "lang": langs}
    table.ingest(range(n), rng.standard_normal((n, DIM)), values)
    table.create_index(filters=["tenant", "lang"])
    documents = Documents(table)
    filter = Every([Compare("tenant", "eq", 3), Compare("lang", "eq", "en")])
    condition, parameters = documents.columns.write_condition(filter)
    conn.execute("SET enable_seqscan = off")
    plan = "\n".join(
        line
        for (line,) in conn.execute(
            b"EXPLAIN (COSTS OFF) SELECT id FROM t WHERE "
            + condition.as_bytes(conn)
            + f" ORDER BY embedding <=> '{[1] * DIM}' LIMIT 3".encode(),
            parameters,
        )
    )
    assert "Index Cond:" in plan and "tenant = " in plan and "lang = " in plan
    assert "Filter:" not in plan
    assert len(documents.do(find, [1] * DIM, 5, filter)) == 5


def test_hostile_names_are_refused(own: Documents, documents: Documents) -> None:
    for name in ("id) OR (true", "nr; DROP TABLE own", "metadata", HOSTILE + "x"):
        with pytest.raises(ValueError, match="expected a field of 'nr', 'body', 'n'"):
            own.do(read, filter=Compare(name, "eq", 1))
        assert (
            documents.do(read, filter=Compare(name, "eq", 1)) == []
        )  # a key of JSON like any other
    assert own.do(count) == len(ROWS) and documents.do(count) == len(METADATA)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (Compare("n", "in", "abc"), "expected a list of values for field 'n', got 'abc'"),
        (Compare("n", "in", 3), "expected a list of values"),
        (Compare("n", "like", 3), "expected a text to compare 'n' with, got 3"),
        (Compare("n", "lt", None), "expected .* to compare 'n' with, got None"),
        (Compare("n", "lt", [1]), r"expected .* to compare 'n' with, got \[1\]"),
        (Compare("n", "near", 1), "expected an operator that is known, got 'near'"),  # type: ignore[arg-type]
        (Compare("o", "eq", math.nan), "expected a value that JSON has, got .*nan"),
        (Compare("o", "eq", DAY), "expected a value that JSON has, got .*datetime.date"),
    ],
)
def test_what_is_wrong_with_filters(
    documents: Documents, own: Documents, filter: Filter, message: str
) -> None:
    for each in (documents, own):
        with pytest.raises(ValueError, match=message):
            each.do(read, filter=filter)
    with pytest.raises(ValueError, match="expected column 's' to be an array"):
        own.do(read, filter=Compare("s", "contains", "a"))
    with pytest.raises(ValueError, match="expected a value or operators for field 'n', got {}"):
        to_filter({"$and": [{"n": {}}]})


# -- documents ----------------------------------------------------------------------------


def test_documents_are_written_over_and_read_in_order(documents: Documents) -> None:
    documents.do(put, ["1", "new"], ["other", "new"], [{"only": 1}, {}], np.ones((2, DIM)))
    one, new, zero = documents.do(read, ["1", "new", "missing", "0"])
    assert (one.id, one.content, one.metadata) == ("1", "other", {"only": 1})
    assert (new.id, new.metadata, zero.id, zero.metadata) == ("new", {}, "0", METADATA[0])
    made = documents.do(put, [None, "2"], ["x", "y"], [{}, {}], np.ones((2, DIM)))
    assert made[1] == "2" and uuid.UUID(made[0])
    assert documents.do(put, None, [], [], np.ones((0, DIM))) == []
    assert documents.do(remove, ["0", "1", "missing"]) == 2
    assert documents.do(remove, None, Compare("s", "eq", "zebra")) == 1
    assert documents.do(remove, ["2"], Compare("s", "eq", "zebra")) == 0
    assert documents.do(remove) == documents.do(count) + 6
    assert documents.do(read) == []


def test_columns_that_are_named_are_all_written(conn: Conn) -> None:
    conn.execute(
        f"CREATE TABLE own (id uuid PRIMARY KEY, content text, v vector({DIM}), lang text, year int"
        " DEFAULT 2000, more jsonb)".encode()
    )
    table = pybq.Table(conn, "own")
    named = Documents(table, json="more", fields=["lang", "year"])
    found = Documents(table, json="more")
    assert list(found.columns.fields) == ["lang", "year"]
    (key,) = found.do(put, None, ["a"], [{"lang": "en", "x": 1}], np.ones((1, DIM)))
    assert found.do(read, [key])[0].metadata == {"x": 1, "lang": "en", "year": 2000}
    named.do(put, [key.upper()], ["b"], [{"y": 2}], np.ones((1, DIM)))
    assert found.do(read, [key])[0].metadata == {"y": 2}
    assert found.do(read, [key, key.upper()]) == found.do(read, [key])


def test_documents_that_were_read_can_be_written(conn: Conn) -> None:
    """What is generated was refused; ids of char(n) were not found again."""
    conn.execute(
        f"CREATE TABLE own (id char(5) PRIMARY KEY, content text, v vector({DIM}), length int"
        " GENERATED ALWAYS AS (length(content)) STORED, lang text)".encode()
    )
    documents = Documents(pybq.Table(conn, "own"))
    documents.do(put, ["b", "a"], ["x", "yy"], [{"lang": "en"}, {}], np.ones((2, DIM)))
    b, a = documents.do(read, ["b", "a"])
    assert (b.id, b.metadata, a.metadata) == ("b", {"length": 1, "lang": "en"}, {"length": 2})
    documents.do(put, [b.id], ["xyz"], [b.metadata], np.ones((1, DIM)))
    assert documents.do(read, ["b"])[0].metadata == {"length": 3, "lang": "en"}


def test_words_and_vectors(documents: Documents) -> None:
    hits = documents.do(find, [1] * DIM, 3, text="3", weights=(0, 1))
    assert hits[0].id == "3" and hits[0].score == pytest.approx(1 / 61)
    assert [e.id for e in documents.do(find, None, 3, ids=["3", "4"], text="text")] == ["3", "4"]
    found, vectors = documents.do(
        find_with_vectors, [6] * DIM, 3, filter=Compare("n", "exists", True)
    )
    assert [each.id for each in found] == ["5", "4", "3"] and vectors.shape == (3, DIM)
    assert vectors[0].tolist() == [5.0] * DIM
    found, vectors = documents.do(find_with_vectors, [6] * DIM, 3, filter=Some([]))
    assert found == [] and vectors.shape == (0, DIM)
    with pytest.raises(ValueError, match="expected a filter or where, got both"):
        documents.do(find, [1] * DIM, 3, filter=Some([]), where="true")


def test_documents_may_lack_a_vector(
    conn: Conn, own: Documents, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever chunks they are written in, over vectors, too."""
    monkeypatch.setattr("pybq._loading.encode.CHUNK_NBYTES", 3 * DIM * 4)
    n = 20
    vectors = [None if i % 3 else [i] * DIM for i in range(n)]
    ids, nothing = [str(i) for i in range(n)], [{}] * n
    for given in (np.ones((n, DIM)), vectors):
        assert own.do(write, ids, ids, nothing, given, on_conflict="update") == n
    found = {each.id: each.vector for each in own.do(read, ids, vectors=True)}
    for i, vector in zip(ids, vectors, strict=True):
        there = found[i]
        assert (None if there is None else there.tolist()) == vector
    near = own.do(find, [0] * DIM, n)
    assert [each.id for each in near] == [i for i in ids if int(i) % 3 == 0]
    with pytest.raises(psycopg.errors.NotNullViolation):  # of a column that wants one
        documents.do(write, ["x"], ["x"], [{}], [None])
    columns = {"content": "text"}
    codes = Documents(pybq.Table.create(conn, "codes", DIM, codes=True, columns=columns))
    with pytest.raises(ValueError, match="expected vectors for all rows of table 'codes'"):
        codes.do(write, [1], ["x"], [{}], [None])


def test_what_is_wrong_with_documents(conn: Conn, own: Documents, documents: Documents) -> None:
    ones = np.ones((1, DIM))
    with pytest.raises(ValueError, match="expected ids of type int4, that of column 'nr', got 'x'"):
        own.do(read, ["x"])
    with pytest.raises(ValueError, match="no column for metadata 'unknown': expected n, s, b, i,"):
        own.do(put, None, ["x"], [{"n": 1, "unknown": 2}], ones)
    with pytest.raises(ValueError, match="expected 1 metadatas, one for each text, got 2"):
        own.do(put, None, ["x"], [{}, {}], ones)
    with pytest.raises(ValueError, match="expected 1 ids, one for each text, got 0"):
        own.do(put, [], ["x"], [{}], ones)
    for ask in (
        lambda: documents.do(remove, "12"),
        lambda: documents.do(read, "12"),
        lambda: documents.do(put, "12", ["x", "y"], [{}, {}], np.ones((2, DIM))),
    ):
        with pytest.raises(TypeError, match="expected a list of ids, got '12'"):
            ask()
    table = documents.table
    assert isinstance(table, pybq.Table)
    with pytest.raises(ValueError, match="no column 'no' in table 'docs' for documents"):
        Documents(table, content="no")
    with pytest.raises(ValueError, match="expected column 'content' of type jsonb, got text"):
        Documents(table, content="content", json="content")
    with pytest.raises(TypeError, match="expected a pybq.Table, got str"):
        Documents("docs")  # type: ignore[arg-type]
    conn.execute(f"CREATE TABLE plain (nr int PRIMARY KEY, content text, v vector({DIM}))".encode())
    plain = Documents(pybq.Table(conn, "plain"))
    with pytest.raises(ValueError, match="expected ids: column 'nr' of table 'plain' has no sequ"):
        plain.do(put, None, ["x"], [{}], ones)


def test_both_ways_of_waiting(conn: Conn, documents: Documents) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(conn.info.dsn, autocommit=True) as mine:
            table = await pybq.AsyncTable.open(mine, "docs")
            sync = documents.table
            assert isinstance(sync, pybq.Table)
            both, alone = Documents(sync, table), Documents(table)
            for each in (documents, both, alone):
                many = [each.ado(find, [1] * DIM, 3, Compare("n", "gt", 0)) for _ in range(8)]
                results = await asyncio.gather(*many)
                assert all(result == results[0] for result in results)
                assert [e.id for e in results[0]] == ["1", "0", "3"]
                await each.ado(put, ["async"], ["x"], [{}], np.ones((1, DIM)))
                assert await each.ado(remove, ["async"]) == 1
            with pytest.raises(TypeError, match="opened with an AsyncTable alone: await the"):
                alone.do(count)
            with pytest.raises(TypeError, match="expected table as a Table beside async_table"):
                Documents(table, table)

    asyncio.run(main())


def test_threads_take_turns(documents: Documents) -> None:
    """Searches with a condition are several statements, which must not mix."""
    expected = documents.do(find, [1] * DIM, 3, Compare("n", "gt", 0))

    def search(documents: Documents) -> None:
        for _ in range(20):
            assert documents.do(find, [1] * DIM, 3, Compare("n", "gt", 0)) == expected

    several = [documents, documents, Documents(documents.table), Documents(documents.table)]
    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(search, each) for each in several]:
            future.result()


def test_no_vector_no_distance(conn: Conn, own: Documents) -> None:
    conn.execute("INSERT INTO own (body) VALUES ('wordy')")
    (found,) = own.do(find, [1] * DIM, 5, Compare("body", "eq", "wordy"), text="wordy")
    assert found.distance is not None and math.isnan(found.distance) and found.score


def test_a_new_table_has_no_columns_that_only_a_name_is_known_of(conn: Conn) -> None:
    with pytest.raises(pybq.TableError, match="no table 'new'; create it, with columns lang, year"):
        open_table(conn, "new", DIM, metadata_columns=["lang", "year"])
    assert conn.execute("SELECT to_regclass('new')").fetchone() == (None,)
