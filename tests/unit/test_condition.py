"""What `where=` takes -> text and parameters; that they choose the rows is shown by test_search."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from pybq._searching.condition import Condition, make_condition


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    cost: Mapped[int] = mapped_column("price")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int]


def make(where: Any, parameters: Any = None, schema: str | None = None) -> Condition:
    """Of a layout conditions ask no more than the name of the table."""
    layout: Any = SimpleNamespace(name="items", named_schema=schema)
    connection: Any = None  # the encoding is that of Python
    return make_condition(where, parameters, layout, connection)


def test_nothing_is_every_row() -> None:
    assert make(None) == Condition("", {}, None)


def test_a_percent_sign_is_one_where_there_are_no_parameters() -> None:
    """As in psycopg."""
    assert make("title LIKE '%a'").text == "title LIKE '%%a'"
    assert make("price %% 7 = %(n)s", {"n": 3}) == Condition("price %% 7 = %(n)s", {"n": 3})
    assert make("true", {}) == Condition("true", {})


def test_composables_are_written_out() -> None:
    where = sql.SQL("{} < {}").format(sql.Identifier("Price"), sql.Literal("50%"))
    assert make(where).text == "\"Price\" < '50%%'"
    where = sql.Identifier("price") + sql.SQL(" < ") + sql.Placeholder("most")
    assert make(where, {"most": 3}) == Condition('"price" < %(most)s', {"most": 3})


def test_expressions_are_compiled_with_their_parameters() -> None:
    for where in (Item.cost < 3, Item.__table__.c.price < 3):
        assert make(where) == Condition("items.price < %(price_1)s::INTEGER", {"price_1": 3})
    assert make(sa.text("price < :most"), {"most": 3}) == Condition("price < %(most)s", {"most": 3})
    bound = Item.cost < sa.bindparam("most")
    assert make(bound, {"most": 3}) == Condition("items.price < %(most)s::INTEGER", {"most": 3})
    members = make(Item.cost.in_([1, 98]))
    assert sorted(members.parameters.values()) == [1, 98]


def test_the_table_is_called_as_the_expression_calls_it() -> None:
    condition = make(aliased(Item, name="i").cost < 3)
    assert (condition.text, condition.alias) == ("i.price < %(price_1)s::INTEGER", "i")
    condition = make(Item.__table__.alias('my "items" %').c.price < 3)
    assert condition.alias == '"my ""items"" %%"' and condition.text.startswith(condition.alias)
    assert make(Item.cost < 3).alias is None
    elsewhere = sa.Table("items", sa.MetaData(), sa.Column("price"), schema="shop")
    condition = make(elsewhere.c.price < 3, schema="shop")
    assert condition.text == "shop.items.price < %(price_1)s::INTEGER"


def test_subqueries_refer_to_the_table() -> None:
    correlated = make(sa.exists().where(Order.item_id == Item.id)).text
    assert "FROM orders" in correlated and "FROM orders, items" not in correlated


@pytest.mark.parametrize(
    ("where", "parameters", "error", "message"),
    [
        (3, None, TypeError, "expected where as str, psycopg.sql.Composable or SQLAlchemy"),
        (Item.cost is None, None, TypeError, "SQLAlchemy expression, got bool"),
        (" ", None, ValueError, "expected a condition in where, got an empty text"),
        ("price = '\0'", None, ValueError, "where"),
        (None, {"a": 1}, ValueError, "expected where with parameters"),
        ("price < %(_bq_a)s", {"_bq_a": 1}, ValueError, "names with _bq_ are taken"),
        (Order.id < 3, None, ValueError, "on the columns of table 'items', got orders"),
        ((Order.id < 3) & (Item.cost < 3), None, ValueError, "got orders, items; put other tables"),
        (
            sa.table("items", sa.column("price"), schema="other").c.price < 3,
            None,
            ValueError,
            "got other.items",
        ),
        (
            Item.id.in_(sa.select(sa.select(Order.id).cte("o").c.id)),
            None,
            ValueError,
            "common table expressions are not supported",
        ),
    ],
)
def test_bad_conditions_say_what_is_wrong(
    where: Any, parameters: Any, error: Any, message: str
) -> None:
    """Of a table on the search path, whose schema is not told."""
    with pytest.raises(error, match=message):
        make(where, parameters, schema=None if where is None else "public")
