"""Words beside a vector: two lists of rows, fused by reciprocal rank in one statement."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psycopg import sql

from pybq._catalog.fulltext import Bm25, Document, check_text_column
from pybq._catalog.layout import Layout, check_text
from pybq.errors import TableError

# The constant of Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and
# individual rank learning methods", SIGIR 2009.
RRF = 60

# Rows of each list, of which k are wanted: the larger of this and that multiple of k.
DEPTH = 50
DEPTH_PER_ROW = 4


@dataclass(frozen=True, slots=True)
class Fusion:
    """How a list by vectors and one by words become one."""

    columns: tuple[str, ...]  # as they were named; empty: those of the index on text
    language: str | None
    weights: tuple[float, float]  # of vectors, of words
    rrf: float
    depth: int
    by_vector: bool  # whether there is a vector to search by
    document: Document | None = None  # when the table was asked


def make_fusion(
    layout: Layout,
    k: int,
    by_vector: bool,
    text_column: str | Sequence[str] | None,
    language: str | None,
    weights: Sequence[float] | None,
    rrf: float | None,
    depth: int | None,
) -> Fusion:
    """Check what `Table.search` takes beside `text`."""
    if layout.remote:
        raise TableError(
            f"table {layout.name!r} has rows on other servers, where words are not searched: ask "
            "for both lists, and fuse them as docs/hybrid.md does"
        )
    pair = (1.0, 1.0) if weights is None else tuple(float(weight) for weight in weights)
    if len(pair) != 2 or not all(0 <= weight < math.inf for weight in pair) or not any(pair):
        raise ValueError(
            f"expected weights as those of vectors and words, not negative, got {weights}"
        )
    constant = RRF if rrf is None else float(rrf)
    if not 0 <= constant < math.inf:
        raise ValueError(f"expected rrf as a finite number of at least 0, got {rrf}")
    wanted = max(DEPTH, DEPTH_PER_ROW * k) if depth is None else operator.index(depth)
    if wanted < 1:
        raise ValueError(f"expected depth of at least 1, got {depth}")
    columns = check_text_column(text_column)
    return Fusion(columns, language, (pair[0], pair[1]), constant, wanted, by_vector)


def take_texts(text: str | Sequence[str], n: int | None) -> list[str]:
    """The words of each of n queries; None: of one query, without a vector."""
    if not isinstance(text, Iterable):
        raise TypeError(f"expected text of words, got {type(text).__name__}")
    texts = [text] if isinstance(text, str) else list(text)
    if isinstance(text, str) and n not in (None, 1):
        raise ValueError(f"expected a text for each of {n} queries, got one")
    if n is not None and len(texts) != n:
        raise ValueError(f"expected a text for each of {n} queries, got {len(texts)}")
    for each in texts:
        if not isinstance(each, str):
            raise TypeError(f"expected text of words, got {type(each).__name__}")
        if not each.strip():
            raise ValueError("expected words in text, got an empty text")
        check_text("text", each)
    return texts


def write_fused(
    layout: Layout,
    quote: Callable[[sql.Composable], str],
    fusion: Fusion,
    k: int,
    columns: Sequence[str],
    by_vector: str,
    distance: str,
    table: str,
    condition: str,
) -> str:
    """Return the statement: key, distance, further columns, score, both ranks; best first.

    Parameters
    ----------
    by_vector : str
        Finds the nearest rows: key, distance, further columns.
    distance : str
        That of a row which only the words find.
    table, condition : str
        What is searched, as `by_vector` has it.

    Notes
    -----
    Rows whose words are worth the same are in the order of their distance. Names of the table's
    columns end inside the lists, so that none of them is taken for one of ours.
    """
    document = fusion.document
    assert document is not None
    keys = [f"bq_key_{i}" for i in range(len(layout.key))]
    extra = [f"bq_column_{i}" for i in range(len(columns))]
    every = [*keys, "bq_distance", *extra]
    of_rows = ", ".join(
        [quote(layout.keys), distance, *(quote(sql.Identifier(n)) for n in columns)]
    )
    # by number, as a column may have any name: the rank, the distance, the key
    numbers = [f"{len(every) + 1} DESC", str(len(keys) + 1), *map(str, range(1, len(keys) + 1))]
    also = f" AND (\n{condition}\n)" if condition else ""
    if document.bm25 is None:
        words, rank = _write_ts_rank(document)
        order, worth = ", ".join(numbers), "true"
    else:
        # nothing else, as the index has no other order; without any word a row is worth nothing
        order = _write_bm25(document, document.bm25)
        words, rank, worth = "true", f"-({order})", "bq_rank > 0"
    by_text = (
        f"SELECT {of_rows}, {rank} FROM {table} WHERE {words}{also}"
        f" ORDER BY {order} LIMIT {fusion.depth}"
    )
    names, key = ", ".join(every), ", ".join(keys)
    said = (
        f"said AS (SELECT *, row_number() OVER (ORDER BY bq_rank DESC, bq_distance, {key}) AS place"
        f" FROM ({by_text}) AS found({names}, bq_rank) WHERE {worth})"
    )
    constant, both = f"float8 '{fusion.rrf!r}'", [f"float8 '{w!r}'" for w in fusion.weights]
    score = f"{both[1]} / ({constant} + said.place)"
    if not fusion.by_vector:
        return (
            f"WITH {said} SELECT {names}, {score}, NULL, place FROM said ORDER BY place LIMIT {k}"
        )
    # An index whose order is relaxed is taken at its word, which the sum is not.
    near = (
        f"near AS (SELECT *, row_number() OVER (ORDER BY bq_distance + 0, {key}) AS place"
        f" FROM ({by_vector}) AS found({names}) WHERE bq_distance <> 'NaN')"
    )
    either = ", ".join(f"coalesce(near.{name}, said.{name})" for name in every[len(keys) :])
    score = f"coalesce({both[0]} / ({constant} + near.place), 0) + coalesce({score}, 0)"
    last = len(every) + 1
    return (
        f"WITH {near}, {said} SELECT {key}, {either}, {score}, near.place, said.place"
        f" FROM near FULL JOIN said USING ({key})"
        f" ORDER BY {last} DESC, {len(keys) + 1}, {key} LIMIT {k}"
    )


def _write_ts_rank(document: Document) -> tuple[str, str]:
    """Whether a row has the words, and how it ranks."""
    text = document.text.replace("%", "%%")
    words = f"websearch_to_tsquery({document.language.replace('%', '%%')}, %(_bq_text)s)"
    return f"{text} @@ {words}", f"ts_rank({text}, {words})"


def _write_bm25(document: Document, bm25: Bm25) -> str:
    """The score with a minus, so that an index can order by it."""
    parts = (document.text, bm25.schema, bm25.index)
    text, schema, index = (part.replace("%", "%%") for part in parts)
    return f"({text}) OPERATOR({schema}.<@>) {schema}.to_bm25query(%(_bq_text)s, {index})"
