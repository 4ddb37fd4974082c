"""Which rows are nearest: the metrics, their operators, their operator classes. Only here."""

from __future__ import annotations

from typing import Literal

Metric = Literal["cosine", "l2", "inner_product"]

# The same sign means the same distance on codes and on pgvector's types.
OPERATORS: dict[Metric, str] = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
# How names of operator classes end, in pgvector and in bq_pgvector.
_OPCLASSES: dict[Metric, str] = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


def check_metric(metric: str) -> None:
    """Refuse what is none."""
    if metric not in OPERATORS:
        raise ValueError(f"expected metric of {', '.join(OPERATORS)}, got {metric!r}")


def name_opclass(type_name: str, metric: Metric) -> str:
    """The operator class of a metric on one of pgvector's types."""
    return f"{type_name}_{_OPCLASSES[metric]}_ops"


def find_metric(opclass: str) -> Metric | None:
    """The metric of an operator class; None if it has several, or is not known."""
    return _METRICS.get(opclass)


_METRICS: dict[str, Metric] = {
    name_opclass(type_name, metric): metric
    for type_name in ("vector", "halfvec")
    for metric in OPERATORS
}
