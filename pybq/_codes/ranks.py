"""Reciprocal rank: what a place in a list is worth, and two lists as one, in SQL. Only here."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

# The constant of Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and
# individual rank learning methods", SIGIR 2009.
RRF = 60

# Rows of each list, of which k are wanted: the larger of this and that multiple of k.
DEPTH = 50
DEPTH_PER_ROW = 4


class Ranks(NamedTuple):
    """How a list by vectors and one by words become one."""

    weights: tuple[float, float]  # of vectors, of words
    rrf: float
    depth: int  # rows of each list


def make_ranks(
    k: int,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
) -> Ranks:
    """Check what is given, and add what is not, for a search of k rows.

    Raises
    ------
    ValueError
        If k or depth is below 1, or weights or rrf are negative, infinite, or all zero.
    """
    if operator.index(k) < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    pair = (1.0, 1.0) if weights is None else tuple(float(weight) for weight in weights)
    if len(pair) != 2 or not all(0 <= weight < math.inf for weight in pair) or not any(pair):
        raise ValueError(
            f"expected weights as those of vectors and words, not negative, got {weights}"
        )
    constant = float(RRF if rrf is None else rrf)
    if not 0 <= constant < math.inf:
        raise ValueError(f"expected rrf as a finite number of at least 0, got {rrf}")
    wanted = max(DEPTH, DEPTH_PER_ROW * k) if depth is None else operator.index(depth)
    if wanted < 1:
        raise ValueError(f"expected depth of at least 1, got {depth}")
    return Ranks((pair[0], pair[1]), constant, wanted)


def check_words(words: str) -> None:
    """Refuse a text without any."""
    if not words.strip():
        raise ValueError("expected words in text, got an empty text")


def fuse_lists(
    by_vector: str | None,
    by_text: str,
    keys: int,
    extra: int,
    ranks: Ranks,
    k: int,
    may_lack_words: bool = False,
) -> str:
    """Return the statement that fuses two lists: key, distance, more, score, both places.

    Parameters
    ----------
    by_vector : str or None
        Finds the nearest rows: so many columns of a key, their distance, so many further columns.
        None: the list by words stands alone.
    by_text : str
        Finds rows that have words: the same columns, and what their words are worth.
    may_lack_words : bool
        Whether that finds others, too, whose words are worth nothing, and which are left out.

    Notes
    -----
    Rows whose words are worth the same are in the order of their distance. Names of the table's
    columns end inside the lists, so that none of them is taken for one of ours.
    """
    of_key = [f"bq_key_{i}" for i in range(keys)]
    every = [*of_key, "bq_distance", *(f"bq_column_{i}" for i in range(extra))]
    names, key = ", ".join(every), ", ".join(of_key)
    having = " WHERE bq_rank > 0" if may_lack_words else ""
    said = (
        f"said AS (SELECT *, row_number() OVER (ORDER BY bq_rank DESC, bq_distance, {key}) AS place"
        f" FROM ({by_text}) AS found({names}, bq_rank){having})"
    )
    constant, both = f"float8 '{ranks.rrf!r}'", [f"float8 '{w!r}'" for w in ranks.weights]
    score = f"{both[1]} / ({constant} + said.place)"
    if by_vector is None:
        return (
            f"WITH {said} SELECT {names}, {score}, NULL, place FROM said ORDER BY place LIMIT {k}"
        )
    # An index whose order is relaxed is taken at its word, which the sum is not.
    near = (
        f"near AS (SELECT *, row_number() OVER (ORDER BY bq_distance + 0, {key}) AS place"
        f" FROM ({by_vector}) AS found({names}) WHERE bq_distance <> 'NaN')"
    )
    either = ", ".join(f"coalesce(near.{name}, said.{name})" for name in every[keys:])
    score = f"coalesce({both[0]} / ({constant} + near.place), 0) + coalesce({score}, 0)"
    last = len(every) + 1
    return (
        f"WITH {near}, {said} SELECT {key}, {either}, {score}, near.place, said.place"
        f" FROM near FULL JOIN said USING ({key})"
        f" ORDER BY {last} DESC, {keys + 1}, {key} LIMIT {k}"
    )
