"""Django 4.2 and later: index, fields and distances, beside those of pgvector.django or alone.

docs/django.md shows all of this at work. The distances are for columns of codes and of vectors.
"""

from pybq.errors import needed_by

with needed_by("pybq.django"):
    import django as django

from pybq.django.distances import CosineDistance, HammingDistance, L2Distance, MaxInnerProduct
from pybq.django.fields import BQEncode, BQQuery, BQVecField
from pybq.django.indexes import BQExtension, BQIndex, BQPgvectorExtension
from pybq.django.settings import bq_settings
from pybq.django.words import hybrid

__all__ = [
    "BQEncode",
    "BQExtension",
    "BQIndex",
    "BQPgvectorExtension",
    "BQQuery",
    "BQVecField",
    "CosineDistance",
    "HammingDistance",
    "L2Distance",
    "MaxInnerProduct",
    "bq_settings",
    "hybrid",
]
