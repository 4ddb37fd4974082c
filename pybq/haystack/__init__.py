"""Haystack 2 and 3: a document store, and its retrievers; docs/haystack.md shows them at work."""

from pybq.errors import needed_by

with needed_by("pybq.haystack"):
    import haystack as haystack

from pybq.haystack.retrievers import (
    BQEmbeddingRetriever,
    BQHybridRetriever,
    BQKeywordRetriever,
)
from pybq.haystack.store import BQDocumentStore

__all__ = ["BQDocumentStore", "BQEmbeddingRetriever", "BQHybridRetriever", "BQKeywordRetriever"]
