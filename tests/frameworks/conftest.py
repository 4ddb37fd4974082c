"""Fixtures: an embedding that knows words, and nothing else."""

from __future__ import annotations

import hashlib
import math

import pytest

DIM = 64


def embed(text: str) -> list[float]:
    """A bag of words: texts that share words are near, whatever machine it runs on."""
    vector = [0.0] * DIM
    for word in text.lower().split():
        vector[hashlib.sha256(word.encode()).digest()[0] % DIM] += 1
    norm = math.hypot(*vector)
    return [x / norm for x in vector] if norm else [1 / math.sqrt(DIM)] * DIM


@pytest.fixture(autouse=True)
def _extension(bq_pgvector: None) -> None:
    """What a table needs for its index."""
