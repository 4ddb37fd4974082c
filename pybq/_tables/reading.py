"""Operations that read: searches, rows, what is known; methods of both kinds of table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import DataError, sql

from pybq._catalog import status as catalog
from pybq._catalog.fulltext import find_document
from pybq._catalog.schema import check_options
from pybq._catalog.size import count_rows
from pybq._catalog.status import Status
from pybq._choice.statistics import Statistics
from pybq._loading.source import unlike
from pybq._searching.calibrate import SAMPLE, keep_effort
from pybq._searching.calibrate import calibrate as measure_effort
from pybq._searching.condition import Where
from pybq._searching.results import Output
from pybq._searching.search import (
    Effort,
    Search,
    check_columns,
    fetch,
    make_search,
    may_go_together,
    with_effort,
)
from pybq._searching.shards import find_parts
from pybq._searching.together import find_index
from pybq._tables.base import BaseTable
from pybq.errors import TableError

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


class SearchOptions(TypedDict, total=False):
    """How a table is searched; see `Table.search`."""

    rerank: float | None
    columns: Sequence[str]
    where: Where | None
    parameters: Mapping[str, object] | None
    recall: float | None
    probes: int | None
    text: str | Sequence[str] | None
    text_column: str | Sequence[str] | None
    language: str | None
    weights: Sequence[float] | None
    rrf: float | None
    depth: int | None


async def search(
    table: BaseTable,
    query: ArrayLike | None,
    k: int = 10,
    *,
    output: Output = "hits",
    **options: Unpack[SearchOptions],
) -> Any:
    """Find the nearest rows: candidates by code, then in exact order by the stored vector.

    An index on vectors does both by itself. With `text`, rows that have these words are a second
    list, and both are fused by reciprocal rank, in one statement.

    Parameters
    ----------
    query : array_like of float, shape (dim,) or (q, dim), or None
        One query, or several, which are sent in one go. Eight or more are answered together by an
        index of bq on the vectors, if there is no `where`, which takes less than each by itself.
        With `text`, None searches by words alone.
    k : int
        Number of rows wanted.
    rerank : float or None
        Of tables with a column of codes: candidates that they find, as a multiple of k, to be
        put in exact order. More cost time and find more: 4 finds at least 98 of the true 100
        on text embeddings (`make demo`). With None, and in tables that keep codes only, the
        order is that of the codes. Other tables accept nothing but the default.
    columns : sequence of str
        Further columns to return.
    where : str, psycopg.sql.Composable or SQLAlchemy expression, optional
        Condition on the rows that are searched: k of those that meet it are found, however
        few they are among all, as the index goes on until it has them
        (`bq.max_scan_tuples` limits that). SQL text, with parameters as ``%(name)s``; or an
        expression on the columns of a mapped class or Table, e.g. ``Item.price < 3``.
    parameters : mapping of str to Any, optional
        Values for `where`. Without it, ``%`` in SQL text stands for itself.
    output : {"hits", "numpy", "arrow", "pandas", "polars"}
        Form of the result, see below.
    recall : float, optional
        Share of the true k nearest rows that is wanted on average: `bq.recall` of an index on
        vectors, for this search. With a column of codes, what `calibrate` has found to be
        needed for this k and at least this recall, in place of `rerank` and `probes`, which are
        then not to be given; that is for searches without a condition.
    probes : int, optional
        Lists of the index that are read first; left out, what was measured when it was
        built, unless its option or `bq.probes` says otherwise.
    text : str or sequence of str, optional
        Words to search for, one text for each query, as people type them: all are wanted, `or`,
        a minus and "quotes" mean what they do on the web (`websearch_to_tsquery`). An index of
        the extension pg_textsearch finds rows with any of the words, ranked by BM25.
    text_column : str or sequence of str, optional
        Column of text or tsvector that has the words, or several that are read one after the
        other; left out, what the index for full text is on (`create_text_index`), of which there
        must be one only. Without an index all rows are read.
    language : str, optional
        Configuration of full text search, as "english" or "simple"; left out, that of the index,
        or what a column of tsvector is generated by, else "english".
    weights : (float, float), optional
        What the list by vectors and the list by words count; (1, 1) if left out.
    rrf : float, optional
        A row at place i of a list scores its weight / (rrf + i); 60 if left out. The smaller, the
        more the first rows of a list stand out.
    depth : int, optional
        Rows of each list that are fused; the larger of 50 and 4 k if left out.

    Returns
    -------
    list of Hit, or list of list of Hit
        At most k per query, nearest first; a list of them for several queries. With `text` those
        of the highest `Hit.score` first.
    Arrays
        For "numpy": ids and distances, of shape (k,) or (q, k).
    pyarrow.Table, pandas.DataFrame or polars.DataFrame
        For the others: columns id, distance and further ones, nearest first. For several
        queries, the number of the query in a first column, query. In Arrow and polars a uuid
        is text, and columns have the same types if nothing was found. With `text`, columns
        score, vector_rank and text_rank follow at the end, and "numpy" is refused.

    Raises
    ------
    ValueError
        If the text is empty, its column is not there or not of text, or options of it are given
        without text; if the shape does not match, a value or rerank is not finite, k, rerank or
        probes is below 1, there is no such column, recall is given beside what it stands for, or
        the condition is on another table.
    TypeError
        If the query is not of numbers, or `where` is of another kind.
    TableError
        If recall is asked of a table that keeps codes only, or was not calibrated for it; if
        rerank is asked of one without a column of codes; if recall or probes are asked of one with
        partitions on other servers; if text is asked of one without an index for it, or with
        several, and no column is named, or of one with rows on other servers.
    ModuleNotFoundError
        If the package for the output is not installed.

    Notes
    -----
    The order is always that of `Hit.distance`, whatever `bq.iterative_scan` says: exact, but
    for codes that are not re-ranked; rows at the same distance come in any order. Which rows
    are found is approximate: the best candidates by code that a scan of the index comes to.
    Without an index all vectors, or all codes, are compared. With `where`, the scan is in
    relaxed order, unless it is off: it passes over none of the rows that it comes to.

    On a connection with ``autocommit=True`` a search is one round trip, else three; `where`,
    `probes`, and `recall` of an index on vectors take up to three more, `text` one to two. An
    expression of SQLAlchemy is compiled anew by each search, which takes about 0.3 ms.

    Words rank rows by `ts_rank`; of rows that it ranks alike, the nearest come first. A text of
    nothing but stop words finds nothing, and leaves the list by vectors. `where` holds for both
    lists. An index for full text that calls functions of its owner's is passed over, as whoever
    searches would run them: name the column.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, columns={"price": "int"})
    ...     rows = table.ingest(range(1000), vectors, {"price": np.arange(1000) % 10})
    ...     cheap = table.search(
    ...         vectors[42], k=3, columns=["price"],
    ...         where="price < %(most)s", parameters={"most": 3})
    ...     ids, distances = table.search(vectors[:5], k=3, output="numpy")
    >>> [(hit.id, hit["price"]) for hit in cheap][0], len(cheap)
    ((42, 2), 3)
    >>> ids.shape, ids[:, 0].tolist()
    ((5, 3), [0, 1, 2, 3, 4])

    Words beside the vector:

    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, columns={"title": "text"})
    ...     titles = [f"a {('red', 'green', 'blue')[i % 3]} thing" for i in range(1000)]
    ...     rows = table.ingest(range(1000), vectors, {"title": titles})
    ...     table.create_text_index("title")
    ...     hit = table.search(vectors[42], k=3, text="red things", columns=["title"])[0]
    >>> hit.id, hit["title"], hit.vector_rank, hit.text_rank, round(hit.score, 4)
    (42, 'a red thing', 1, 1, 0.0328)
    """
    check_options(options, SearchOptions)
    conn = table._db.connection
    search = make_search(table._layout, conn, query, k, output=output, **options)
    try:
        return await _search(table, search)
    except DataError as error:
        # Encoded anew since this table was opened, or the first ingest was rolled back.
        if "different transforms" not in str(error):
            raise
        table._forget()
        if table._db.in_transaction:  # which has failed
            raise
    return await _search(table, search)


async def _search(table: BaseTable, search: Search) -> Any:
    quantizer = await table._find_quantizer()
    if quantizer is None and table._layout.has_codes:  # nothing was ingested
        return search.results.make([()] * len(search.texts))
    fusion = search.shape.fusion
    if fusion is not None:
        document = await find_document(table._db, table._layout, fusion.columns, fusion.language)
        fusion = replace(fusion, document=document)
        search = replace(search, shape=replace(search.shape, fusion=fusion))
    if search.recall is not None and quantizer is not None:
        effort = await table._find_effort(quantizer, search.recall, search.shape.k)
        search = with_effort(search, effort)
    if table._layout.sharded:
        shape = search.shape
        parts = await find_parts(
            table._db, table._layout, shape.where, shape.alias, search.parameters
        )
        if not parts:
            return search.results.make([()] * len(search.texts))
        search = replace(search, shape=replace(shape, parts=parts))
    if may_go_together(search, table._layout):
        search = replace(search, index=await find_index(table._db, table._layout))
    statement = table._writer.write(search, quantizer)
    return search.results.make(await fetch(table._db, table._layout, statement))


@dataclass(slots=True)
class Row:
    """One row of a table, as `Table.get` gives it. Further columns are read as `row["name"]`.

    Attributes
    ----------
    id : Any
        Value of the primary key, a tuple if it has several columns.
    columns : dict
        Further columns.
    vector : ndarray of float32, shape (dim,), or None
        If it was asked for, and the row has one.

    Examples
    --------
    >>> row = Row(42, {"title": "a title"})
    >>> row.id, row["title"], row.vector
    (42, 'a title', None)
    """

    id: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    vector: NDArray[np.float32] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]


async def get(
    table: BaseTable,
    ids: Sequence[object] | NDArray[Any],
    columns: Sequence[str] | None = None,
    *,
    vectors: bool = False,
) -> list[Row | None]:
    """Read rows by their keys, in the order that is asked.

    Parameters
    ----------
    ids : sequence or ndarray, shape (n,)
        Values of the primary key, tuples if it has several columns.
    columns : sequence of str, optional
        Further columns to read; left out, all.
    vectors : bool
        Read the stored vectors, too.

    Returns
    -------
    list of (Row or None)
        One for each of `ids`: None where there is no such row.

    Raises
    ------
    ValueError
        If there is no such column.
    TypeError
        If ids are no keys, as a text, numbers with a fraction, or an array of two dimensions.
    TableError
        If the table has no primary key, or if vectors are asked of one that keeps codes only.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((3, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, columns={"title": "text"})
    ...     rows = table.ingest(range(3), vectors, {"title": ["a", "b", "c"]})
    ...     last, none, first = table.get([2, 7, 0])
    >>> (last["title"], none, first["title"])
    ('c', None, 'a')
    """
    layout = table._layout
    layout.need_key()
    check_columns(columns or ())
    names = list(layout.columns) if columns is None else list(columns)
    for name in names:
        if name not in layout.columns:
            raise ValueError(f"no column {name!r} in table {layout.name!r}")
    if vectors and layout.source is None:
        raise TableError(f"table {layout.name!r} keeps codes only: there are no vectors to read")
    read = [sql.SQL("t.{}").format(layout.columns[name].identifier) for name in names]
    if vectors and layout.source is not None:
        read.append(sql.SQL("t.{}::real[]").format(layout.source.identifier))
    given, keys = layout.unnest_keys(ids)
    condition: sql.Composable = sql.SQL("true")
    more: list[list[Any]] = []
    if layout.remote:  # a join is not sent to other servers
        condition, more = layout.with_keys(keys[0] if len(keys) == 1 else zip(*keys, strict=True))
    rows = await table._db.fetch(
        sql.SQL(
            "SELECT given.{place}, {read} FROM {given} WITH ORDINALITY AS given({keys}, {place})"
            " JOIN {table} AS t USING ({keys}) WHERE {condition}"
        ).format(
            place=sql.Identifier(unlike("bq_place", [key.name for key in layout.key])),
            read=sql.SQL(", ").join([layout.keys, *read]),
            given=given,
            keys=layout.keys,
            table=layout.identifier,
            condition=condition,
        ),
        [*keys, *more],
    )
    found: list[Row | None] = [None] * len(keys[0])
    n = 1 + len(layout.key)
    for place, *row in rows:
        values = dict(zip(names, row[n - 1 :], strict=False))
        vector = np.array(row[-1], np.float32) if vectors and row[-1] is not None else None
        found[place - 1] = Row(layout.take_key(row), values, vector)
    return found


async def count(table: BaseTable) -> int:
    """Count the rows that the current role may see, by reading all; `status` may estimate.

    Returns
    -------
    int

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((3, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     table.ingest(range(3), vectors), table.delete([1]), table.count()
    (3, 1, 2)
    """
    return await count_rows(table._db, table._layout)


async def calibrate(
    table: BaseTable,
    recall: float = 0.98,
    k: int = 10,
    queries: ArrayLike | None = None,
    sample: int = SAMPLE,
) -> Effort:
    """Measure what a wanted recall needs: how many candidates, how many lists of the index.

    Of tables with a column of codes; an index on vectors has measured it when it was built.

    Parameters
    ----------
    recall : float
        Share of the true k nearest rows that searches should find on average, below 1.
    k : int
        Rows wanted per query.
    queries : array_like of float, shape (q, dim), optional
        At most `sample` of them, spread evenly, are used. By default, vectors of rows of the
        table; of each, the row itself is then not counted as found. Where queries are of
        another kind than rows (questions and passages, pictures and texts), give some.
    sample : int
        Number of queries. The result is as certain as a mean of so many.

    Returns
    -------
    Effort
        The smallest of the tried settings that meets the recall, with two standard errors
        of the sample to spare: `rerank` of 1, 1.5, 2, 3, 4, 6, 8, 12, ..., and `probes` only
        if the lists that the index reads by itself do not suffice. It is kept in
        `bq_columns`, where `search` finds it for the same k and this recall or less, on any
        connection (on open ones within a minute), until the codes are made anew; `status`
        shows it. Searches warn once the table has twice the rows: measure again then. For
        who does not own the table, only this object keeps it, with a warning.

    Raises
    ------
    TableError
        If the table has not both vectors and a column of codes, or nothing was ingested.
    ValueError
        If recall, k or sample is out of range, or the shape of queries does not match.

    Notes
    -----
    Searches are run as `search` runs them, with the index if there is one. What they find
    is compared with the best of at least eight times as many candidates (at most 50,000)
    from all lists of the index, and not with an exact search of all rows: what even those
    miss goes unnoticed. `pybq recall` compares with all rows. What counts is which rows are
    found, those at the distance of the k-th included; their order is that of `search`.

    With an index it takes about a second for 100,000 rows, without one as long as 600
    searches.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, codes=True)
    ...     rows = table.ingest(range(1000), vectors)
    ...     rerank, probes = table.calibrate(recall=0.95)
    ...     hits = table.search(vectors[42], rerank=rerank, probes=probes)
    ...     same = table.search(vectors[42], recall=0.95)
    >>> 2 <= rerank <= 16, probes, hits == same
    (True, None, True)
    """
    table._layout.need_codes()
    quantizer = await table._find_quantizer()
    if quantizer is None:
        raise TableError(f"table {table.name!r} has no rows to measure recall on")
    effort = await measure_effort(
        table._db, table._layout, quantizer, table._writer, recall, k, queries, sample
    )
    await keep_effort(table._db, table._layout, recall, k, effort)
    table._efforts[recall, k] = effort, time.monotonic()
    return effort


async def status(table: BaseTable) -> Status:
    """What the database knows about the table.

    Returns
    -------
    Status

    Raises
    ------
    TableError
        If a column of codes is gone from bq_columns.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> rng = np.random.default_rng(7)
    >>> vectors = rng.standard_normal((1000, 64)) * np.geomspace(1, 0.01, 64)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     rows = table.ingest(range(1000), vectors)
    ...     advice = table.status().advice
    ...     table.create_index()
    ...     status = table.status()
    >>> advice
    'CREATE INDEX CONCURRENTLY ON "public"."items" USING bq ("embedding" halfvec_cosine_ops)'
    >>> status.row_count, status.transform, status.indexes[0].live_rows, status.advice
    (1000, 1, 1000, None)
    """
    return await catalog.read_status(table._db, table._layout)


async def statistics(table: BaseTable) -> Statistics:
    """Statistics of all vectors that were ingested; without codes, of a sample of the rows.

    Returns
    -------
    Statistics
        Of the vectors scaled to norm 1, if the metric is cosine.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, metric="l2", store="vector")
    ...     rows = table.ingest(range(1000), vectors)
    ...     statistics = table.statistics()
    >>> statistics.count, np.allclose(statistics.mean, vectors.mean(axis=0), atol=1e-6)
    (1000, True)
    """
    return await catalog.read_statistics(table._db, table._layout)
