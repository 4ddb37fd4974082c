"""Documents of Haystack -> columns of rows, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haystack import Document

from pybq._documents.columns import Found

# What a document has beside content, metadata and embedding, where a table has columns for it.
OTHERS = {"blob": "bytea", "rest": "jsonb"}


def to_rows(documents: Sequence[Document]) -> tuple[Any, ...]:
    """Ids, contents, metadata, embeddings, and other columns."""
    others = [_take_others(document) for document in documents]
    return (
        [document.id for document in documents],
        [document.content for document in documents],
        [document.meta for document in documents],
        [document.embedding for document in documents],
        {name: [each[name] for each in others] for name in OTHERS},
    )


def to_document(found: Found, score: float | None = None) -> Document:
    rest = found.others.get("rest") or {}
    if found.others.get("blob") is not None:
        rest = {**rest, "blob": {**rest.get("blob", {}), "data": found.others["blob"]}}
    embedding = None if found.vector is None else found.vector.tolist()
    known = {"id": found.id, "content": found.content, "meta": found.metadata}
    return Document.from_dict({**known, **rest, "embedding": embedding, "score": score})


def _take_others(document: Document) -> dict[str, Any]:
    """Binary data, and what else a document has that is neither metadata nor embedding."""
    rest = document.to_dict(flatten=False)
    for name in ("id", "content", "meta", "embedding", "score"):
        del rest[name]
    rest = {name: value for name, value in rest.items() if value is not None}
    if document.blob is None:
        return {"blob": None, "rest": rest or None}
    del rest["blob"]["data"]
    return {"blob": document.blob.data, "rest": rest}
