"""Words beside a vector: what `text` of a search is, and the list of rows that have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psycopg import sql

from pybq._catalog.fulltext import Bm25, Document, check_text_column
from pybq._catalog.layout import Layout, check_text
from pybq._codes.ranks import Ranks, check_words, fuse_lists, make_ranks
from pybq.errors import TableError


@dataclass(frozen=True, slots=True)
class Fusion:
    """How a list by vectors and one by words become one."""

    columns: tuple[str, ...]  # as they were named; empty: those of the index on text
    language: str | None
    ranks: Ranks
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
    columns = check_text_column(text_column)
    return Fusion(columns, language, make_ranks(k, weights, rrf, depth), by_vector)


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
        check_words(each)
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
    """
    document = fusion.document
    assert document is not None
    keys, extra = len(layout.key), len(columns)
    of_rows = ", ".join(
        [quote(layout.keys), distance, *(quote(sql.Identifier(n)) for n in columns)]
    )
    also = f" AND (\n{condition}\n)" if condition else ""
    if document.bm25 is None:
        words, rank = _write_ts_rank(document)
        # by number, as a column may have any name: the rank, the distance, the key
        order = ", ".join([f"{keys + extra + 2} DESC", *map(str, [keys + 1, *range(1, keys + 1)])])
    else:
        # nothing else, as the index has no other order
        order = _write_bm25(document, document.bm25)
        words, rank = "true", f"-({order})"
    by_text = (
        f"SELECT {of_rows}, {rank} FROM {table} WHERE {words}{also}"
        f" ORDER BY {order} LIMIT {fusion.ranks.depth}"
    )
    near = by_vector if fusion.by_vector else None
    every = document.bm25 is not None
    return fuse_lists(near, by_text, keys, extra, fusion.ranks, k, may_lack_words=every)


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
