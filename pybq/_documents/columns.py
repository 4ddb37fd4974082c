"""Which columns of a table hold what of a document: its key, content, metadata, and the rest."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pybq._catalog.layout import INTEGERS
from pybq._documents.filters import JSON, Every, Fields, Filter, Keys, write_condition
from pybq._tables.base import BaseTable

# Columns of these types are for searching, not for reading.
NO_METADATA = ("tsvector", "bqvec", "bqquery", "vector", "halfvec", "sparsevec")

# Frameworks have these as texts, as JSON does.
PARSERS: dict[str, Callable[[str], Any]] = {
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "uuid": uuid.UUID,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A document as a table has it."""

    id: str
    key: Any  # the same, as the table has it
    content: str | None
    metadata: dict[str, Any]
    distance: float = math.nan  # if it was not searched by a vector, or has none
    score: float | None = None  # of a search by words
    others: Mapping[str, Any] = field(default_factory=dict)  # by column
    vector: NDArray[np.float32] | None = None  # if it was asked for


class Columns:
    """Which columns of a table hold what of a document.

    Parameters
    ----------
    table : Table or AsyncTable
        With a primary key of one column.
    content : str
        Column of the text.
    json : str or None
        Column of type jsonb for metadata that have no column of their own; the default one is not
        asked to be there.
    fields : sequence of str, optional
        Columns of metadata, which are all written; left out, all further ones of the table, of
        which those are written that a document has.
    others : sequence of str
        Columns of what else a document of the framework has, of those that are there.
    indexed : sequence of str
        Metadata in JSON that an index keeps as text, ``(metadata ->> 'lang')``.
    default_json : str
        What the framework calls that column.
    """

    def __init__(
        self,
        table: BaseTable,
        content: str = "content",
        json: str | None = "metadata",
        fields: Sequence[str] | None = None,
        others: Sequence[str] = (),
        indexed: Sequence[str] = (),
        default_json: str = "metadata",
    ) -> None:
        layout = table._layout
        self.key = layout.id
        self.table = layout.name
        there = layout.columns
        if json == default_json and json not in there:
            json = None
        for name in (content, *(fields or ()), *([json] if json else ())):
            if name not in there:
                raise ValueError(f"no column {name!r} in table {layout.name!r} for documents")
        if json is not None and there[json].type_name not in JSON:
            raise ValueError(
                f"expected column {json!r} of type jsonb, got {there[json].declared}; say which "
                "one holds metadata, or None"
            )
        self.content, self.json, self.declared = there[content], json, fields is not None
        names = there if fields is None else fields
        self.others = [name for name in others if name in there and name not in (fields or ())]
        self.fields = {
            name: there[name]
            for name in names
            if name not in (content, json, *self.others)
            and (fields is not None or there[name].type_name not in NO_METADATA)
        }
        self.read = [content, *([json] if json else []), *self.fields, *self.others]
        # What filters may name: of a table without JSON its key and content, too.
        known = dict(self.fields)
        if json is None:
            known = {self.key.name: self.key, content: there[content], **known}
        found = None if json is None else there[json]
        self._fields = Fields(self.key, known, found, frozenset(indexed))

    def to_key(self, given: Any) -> Any:
        """A value of the key from an id, which frameworks have as text."""
        try:
            if self.key.type_name in INTEGERS:
                return int(given)
            if self.key.type_name == "uuid":
                return uuid.UUID(str(given))
        except ValueError:
            raise ValueError(
                f"expected ids of type {self.key.declared}, that of column {self.key.name!r}, got "
                f"{given!r}"
            ) from None
        return self.to_id(given)

    def to_keys(self, ids: Sequence[str | None]) -> list[Any]:
        """Keys of ids; None where one is to be made."""
        if isinstance(ids, (str, bytes)):  # not the ids that its letters are
            raise TypeError(f"expected a list of ids, got {ids!r}")
        return [None if each is None else self.to_key(each) for each in ids]

    def to_id(self, key: Any) -> str:
        """The id of a key."""
        # its blanks are no part of a value of char(n)
        return str(key).rstrip(" ") if self.key.type_name == "bpchar" else str(key)

    def to_values(
        self,
        contents: Sequence[str | None],
        metadatas: Sequence[Mapping[str, Any]],
        others: Mapping[str, Sequence[Any]],
    ) -> dict[str, list[Any]]:
        """Values of columns from content, metadata and what else there is."""
        # a document that was read may be written again: what is generated comes by itself
        fields = [
            name
            for name, column in self.fields.items()
            if not column.generated and (self.declared or any(name in each for each in metadatas))
        ]
        values: dict[str, list[Any]] = {self.content.name: list(contents)}
        for name in fields:
            values[name] = [self._parse(name, each.get(name)) for each in metadatas]
        rest = [self._take_rest(each) for each in metadatas]
        if self.json is not None:
            values[self.json] = rest
        for name, column in others.items():
            if name in self.others:
                values[name] = list(column)
            elif any(each is not None for each in column):
                raise ValueError(f"no column {name!r} in table {self.table!r} for what has one")
        return values

    def to_changes(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Values of columns that change if metadata are added; the rest is one of JSON."""
        changes = {
            name: self._parse(name, value)
            for name, value in metadata.items()
            if name in self.fields and not self.fields[name].generated
        }
        rest = self._take_rest(metadata)
        return {**changes, self.json: rest} if self.json is not None and rest else changes

    def _parse(self, name: str, value: Any) -> Any:
        parse = PARSERS.get(self.fields[name].type_name)
        return parse(value) if parse and isinstance(value, str) else value

    def _take_rest(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata that have no column of their own: they must have that of JSON."""
        rest = {name: value for name, value in metadata.items() if name not in self.fields}
        if rest and self.json is None:
            raise ValueError(
                f"no column for metadata {next(iter(rest))!r}: expected "
                f"{', '.join(self.fields) or 'none'}; a column of type jsonb takes all others"
            )
        return rest

    def to_document(self, key: Any, values: Mapping[str, Any], **more: Any) -> Found:
        """A document from the columns of a row; `more` is of a search."""
        metadata = dict(values[self.json] or {}) if self.json is not None else {}
        metadata |= {name: values[name] for name in self.fields if values[name] is not None}
        others = {name: values[name] for name in self.others}
        return Found(
            self.to_id(key), key, values[self.content.name], metadata, others=others, **more
        )

    def write_condition(
        self, filter: Filter | None, ids: Sequence[str] | None = None
    ) -> tuple[sql.Composed, dict[str, Any]]:
        """A condition and its parameters; without filter and ids it is true."""
        parts = [] if filter is None else [filter]
        if ids is not None:
            parts.append(Keys(self.to_keys(ids)))
        return write_condition(Every(parts), self._fields)
