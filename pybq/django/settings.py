"""Settings of bq for a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction

_SETTINGS = ("recall", "probes", "iterative_scan", "max_scan_tuples")


@contextmanager
def bq_settings(*, using: str = DEFAULT_DB_ALIAS, **values: float | str | None) -> Iterator[None]:
    """Run a block, in a transaction, with settings of bq: ``with bq_settings(recall=0.99):``

    Querysets are lazy: those that are evaluated within are meant. The settings are the
    transaction's, so no other session of a pool gets them, and they end with the block.

    Parameters
    ----------
    using : str
        Alias of the database.
    **values
        `recall`, `probes`, `iterative_scan`, `max_scan_tuples`, as in ``SET bq.recall = 0.99``.
    """
    for name in values:
        if name not in _SETTINGS:
            raise TypeError(f"expected settings of {', '.join(_SETTINGS)}, got {name!r}")
    with transaction.atomic(using=using):
        before = _set(using, values)
        yield
        # an error undoes them by itself
        if not connections[using].needs_rollback:
            _set(using, before)


def _set(using: str, values: dict[str, Any]) -> dict[str, Any]:
    """Set them for the transaction, None: to what they are by default; returns what they were."""
    before = {}
    with connections[using].cursor() as cursor:
        for name, value in values.items():
            # unknown until the session has used bq, and never the empty text it then shows
            cursor.execute("SELECT nullif(current_setting(%s, true), '')", [f"bq.{name}"])
            before[name] = cursor.fetchone()[0]
            if value is None:
                cursor.execute(f"SET LOCAL bq.{name} TO DEFAULT")
            else:
                cursor.execute("SELECT set_config(%s, %s, true)", [f"bq.{name}", str(value)])
    return before
