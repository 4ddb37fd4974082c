"""Column types, distances and nearest() of pybq.sqlalchemy, against SQL and exact distances."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from psycopg.adapt import PyFormat
from psycopg.pq import Format
from shared import Conn
from sqlalchemy import (
    Column,
    Computed,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    bindparam,
    create_engine,
    event,
    func,
    inspect,
    literal,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.exc import DataError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
)

import pybq
from pybq.psycopg import register_bq
from pybq.sqlalchemy import BQQuery, BQVec, bq_encode, bq_query, nearest

pgvector = pytest.importorskip("pgvector.sqlalchemy")

DIM = 48
TRANSFORM = 3
ROWS = 600
METHODS = {
    "hamming_distance": "<~>",
    "cosine_distance": "<=>",
    "l2_distance": "<->",
    "inner_product": "<#>",
}

pytestmark = pytest.mark.usefixtures("vector")


class Base(DeclarativeBase):
    pass


class Kind(Base):
    __tablename__ = "kinds"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind_id: Mapped[int] = mapped_column(ForeignKey("kinds.id"))
    kind: Mapped[Kind] = relationship()
    embedding: Mapped[Any] = mapped_column(pgvector.VECTOR(DIM))
    code: Mapped[pybq.Code] = mapped_column(
        BQVec(DIM, transform=TRANSFORM),
        Computed(f"bq_encode(embedding::real[], {TRANSFORM})", persisted=True),
    )


Index("ix_items_code", Item.code, postgresql_using="bq", postgresql_with={"lists": 4})


class Pair(Base):
    __tablename__ = "pairs"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[pybq.Code | None] = mapped_column(BQVec(DIM, transform=TRANSFORM))
    query: Mapped[pybq.Query | None] = mapped_column(BQQuery())


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    # of uneven norms, so that no two metrics agree
    norms = rng.lognormal(sigma=0.5, size=(ROWS, 1))
    return (rng.standard_normal((ROWS, DIM)) * norms).astype(np.float32)


@pytest.fixture
def engine(conn: Conn, vectors: np.ndarray) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://", connect_args=conn.info.get_parameters())
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Kind(id=i, name=name) for i, name in enumerate(["even", "odd"]))
        session.flush()
        session.add_all(Item(id=i, kind_id=i % 2, embedding=v) for i, v in enumerate(vectors))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def quantizer() -> pybq.Quantizer:
    return pybq.Quantizer(DIM, TRANSFORM)


def exact_distances(vectors: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    products = vectors @ query
    if metric == "inner_product":
        return -products
    if metric == "l2":
        return np.linalg.norm(vectors - query, axis=1)
    return 1 - products / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))


# -- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("registered", [False, True])
def test_values_come_back_equal(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer, registered: bool
) -> None:
    if registered:
        engine.dispose()
        event.listen(engine, "connect", lambda connection, record: register_bq(connection))
    code = pybq.Code.from_numpy(quantizer.encode(vectors[0]))
    query = quantizer.query(vectors[1])
    with Session(engine) as session:
        session.add_all([Pair(id=1, code=code, query=query), Pair(id=2, code=None, query=None)])
        session.commit()
        found = session.get_one(Pair, 1)
        assert (found.code, found.query) == (code, query)
        assert session.scalars(select(Pair.id).where(Pair.code == code)).all() == [1]
        assert session.scalars(select(Pair.id).where(Pair.query.is_(None))).all() == [2]


def test_parameters_are_sent_in_binary(engine: Engine) -> None:
    with engine.connect() as connection:
        adapters = connection.connection.driver_connection.adapters
        for value in (pybq.Code, pybq.Query):
            assert adapters.get_dumper(value, PyFormat.AUTO).format == Format.BINARY


def test_connection_opened_before_the_import_works(conn: Conn) -> None:
    from sqlalchemy.pool import Pool

    from pybq.sqlalchemy import _register_dumpers

    engine = create_engine("postgresql+psycopg://", connect_args=conn.info.get_parameters())
    event.remove(Pool, "checkout", _register_dumpers)
    try:
        with engine.connect() as connection:
            opened = connection.connection.driver_connection
    finally:
        event.listen(Pool, "checkout", _register_dumpers)
    query = pybq.Query([1.0, 2.0])
    with engine.connect() as connection:
        assert connection.connection.driver_connection is opened
        assert connection.scalar(select(literal(query, BQQuery()))) == query
    engine.dispose()


def test_literal_values_equal_parameters(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer
) -> None:
    code = pybq.Code.from_numpy(quantizer.encode(vectors[0]))
    statement = select(literal(code, BQVec(DIM)), literal(quantizer.query(vectors[1]), BQQuery()))
    written = statement.compile(engine, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        expected = connection.execute(statement).one()
        # as psycopg sees it, without parameters
        found = connection.exec_driver_sql(str(written)).one()
    assert [value.to_text() for value in expected] == list(found)


def test_other_drivers_get_text(quantizer: pybq.Quantizer, vectors: np.ndarray) -> None:
    code = pybq.Code.from_numpy(quantizer.encode(vectors[0]))
    process = BQVec(DIM).bind_processor(psycopg2.dialect())
    assert process(code) == code.to_text()
    assert process(None) is None


def test_wrong_values_are_refused(engine: Engine, vectors: np.ndarray) -> None:
    vector = vectors[0]
    with Session(engine) as session:
        session.add(Pair(id=1, code=vector))
        with pytest.raises(StatementError, match="expected a Code, got ndarray.*bq_encode"):
            session.flush()
    code = pybq.Code.from_numpy(pybq.Quantizer(DIM).encode(vector))
    with pytest.raises(TypeError, match="expected a Query or a vector, got Code; see hamming"):
        Item.code.cosine_distance(code)
    with pytest.raises(TypeError, match="expected a Code or a vector, got Query; see cosine"):
        Item.code.hamming_distance(pybq.Query(vector))
    with pytest.raises(ValueError, match=rf"expected vectors? of shape .*{DIM}.*, got \(2,\)"):
        Item.code.l2_distance([1.0, 2.0])
    with pytest.raises(ValueError, match="expected transform between 0 and 65535, got -1"):
        BQVec(DIM, transform=-1)


def test_the_server_refuses_other_dims_and_transforms(engine: Engine, vectors: np.ndarray) -> None:
    short = pybq.Code.from_numpy(pybq.Quantizer(4).encode([1, 2, 3, 4]))
    other = type_coerce(Item.code, BQVec(DIM, transform=TRANSFORM + 1))
    with Session(engine) as session:
        session.add(Pair(id=1, code=short))
        with pytest.raises(DataError, match=f"expected {DIM} dimensions, (got|not) 4"):
            session.flush()
        session.rollback()
        with pytest.raises(DataError, match=f"different transforms {TRANSFORM} and 4"):
            session.scalars(select(other.cosine_distance(vectors[0]))).all()


# -- distances ----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "operator"), METHODS.items())
def test_distances_equal_sql(
    engine: Engine, vectors: np.ndarray, method: str, operator: str
) -> None:
    make = "bq_encode" if operator == "<~>" else "bq_query"
    with engine.connect() as connection:
        expected = connection.execute(
            text(
                f"SELECT code {operator} {make}(CAST(:vector AS real[]), {TRANSFORM})"
                " FROM items ORDER BY id"
            ),
            {"vector": vectors[5].tolist()},
        ).scalars()
        distance = getattr(Item.code, method)(vectors[5])
        assert connection.scalars(select(distance).order_by(Item.id)).all() == expected.all()


@pytest.mark.parametrize("method", METHODS)
def test_order_by_uses_the_index(engine: Engine, vectors: np.ndarray, method: str) -> None:
    statement = select(Item.id).order_by(getattr(Item.code, method)(vectors[0])).limit(5)
    plan = explain(engine, statement)
    assert any("Index Scan using ix_items_code" in line for line in plan), plan


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_nearest_uses_the_index(engine: Engine, vectors: np.ndarray, metric: Any) -> None:
    of_all = nearest(Item, code=Item.code, vector=Item.embedding, query=vectors[0], metric=metric)
    by_code = nearest(select(Item.id), code=Item.code, query=vectors[0], metric=metric)
    for statement in (of_all, by_code):
        plan = explain(engine, statement)
        assert any("Index Scan using ix_items_code" in line for line in plan), plan


def explain(engine: Engine, statement: Any, values: Any = None) -> list[str]:
    """The plan of a statement with its parameters as they are sent."""

    def prefix(
        connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any
    ) -> tuple[str, Any]:
        return (f"EXPLAIN {statement}" if "ORDER BY" in statement else statement), parameters

    event.listen(engine, "before_cursor_execute", prefix, retval=True)
    try:
        with engine.connect() as connection:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            return [row[0] for row in connection.execute(statement, values).cursor.fetchall()]
    finally:
        event.remove(engine, "before_cursor_execute", prefix)


def test_operands_may_be_values_or_expressions(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer
) -> None:
    query = quantizer.query(vectors[7])
    other = aliased(Item)
    with Session(engine) as session:
        of_vector, of_query = session.execute(
            select(Item.code.l2_distance(vectors[7]), Item.code.l2_distance(query))
        ).first()
        in_sql = session.scalars(
            select(Item.code.l2_distance(bq_query(other.embedding, TRANSFORM)))
            .select_from(Item)
            .join(other, other.id == 7)
            .order_by(Item.id)
        ).first()
        bound = session.scalars(
            select(Item.code.l2_distance(bindparam("query", type_=BQQuery()))).order_by(Item.id),
            {"query": query},
        ).first()
        codes = session.scalars(
            select(Item.code.hamming_distance(other.code)).where(other.id == Item.id, Item.id == 7)
        ).one()
        product = session.scalars(
            select(func.inner_product(Item.code, query_literal(query))).order_by(Item.id)
        ).first()
        negative = session.scalars(select(Item.code.inner_product(query)).order_by(Item.id)).first()
    assert of_vector == of_query == in_sql == bound
    assert codes == 0
    assert product == -negative


def query_literal(query: pybq.Query) -> Any:
    return literal(query, BQQuery())


def test_statements_are_cached_apart_from_their_vectors(vectors: np.ndarray) -> None:
    def key(statement: Any) -> Any:
        return statement._generate_cache_key().key

    first = select(Item.id).order_by(Item.code.cosine_distance(vectors[0]))
    second = select(Item.id).order_by(Item.code.cosine_distance(vectors[1]))
    assert key(first) == key(second)
    assert key(select(literal(None, BQVec(4)))) != key(select(literal(None, BQVec(8))))


def test_functions_equal_the_quantizer(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer
) -> None:
    code = pybq.Code.from_numpy(quantizer.encode(vectors[3]))
    with Session(engine) as session:
        assert session.get_one(Item, 3).code == code  # generated by the server
        session.add(Pair(id=1, code=bq_encode(vectors[3], TRANSFORM)))
        session.commit()
        assert session.get_one(Pair, 1).code == code
        session.execute(update(Pair).values(query=bq_query(vectors[3], TRANSFORM)))
        assert session.scalars(select(Pair.query)).one() == quantizer.query(vectors[3])
    with pytest.raises(ValueError, match=r"expected a vector of shape \(dim,\)"):
        bq_encode(vectors)


def test_a_generic_plan_uses_an_index_on_an_expression(engine: Engine, vectors: np.ndarray) -> None:
    """The transform is part of the expression: as a parameter it would hide the index."""
    table = Base.metadata.tables["items"]
    code = sql_cast(bq_encode(table.c.embedding, 5), BQVec(DIM, transform=5))
    index = Index("ix_items_encoded", code, postgresql_using="bq")
    statement = select(Item.id).order_by(code.cosine_distance(vectors[3])).limit(5)
    try:
        with engine.begin() as connection:
            index.create(connection)
    finally:
        table.indexes.discard(index)
    written = statement.compile(engine)
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        cursor = connection.connection.cursor()
        query = next(value for value in written.params.values() if isinstance(value, pybq.Query))
        limit = next(name for name, value in written.params.items() if value == 5)
        names = {**dict.fromkeys(written.params, query), limit: 5}
        plan = cursor.execute(f"EXPLAIN {written}", names, prepare=True).fetchall()
        assert "Index Scan using ix_items_encoded" in str(plan)
        assert connection.scalars(statement).first() == 3
        with pytest.raises(TypeError):
            bq_query(Item.embedding, 1.5)  # type: ignore[arg-type]


# -- the catalog ---------------------------------------------------------------------------


def test_reflection_finds_types_and_index(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE open_dim (code bqvec, query bqquery)"))
        connection.execute(text("CREATE TABLE typed (code bqvec(4,7))"))
    items = Table("items", MetaData(), autoload_with=engine)
    assert isinstance(items.c.code.type, BQVec)
    assert items.c.code.type.dim == DIM
    assert items.c.code.computed is not None
    open_dim = Table("open_dim", MetaData(), autoload_with=engine)
    assert repr(open_dim.c.code.type) == "BQVec()"
    assert isinstance(open_dim.c.query.type, BQQuery)
    typed = Table("typed", MetaData(), autoload_with=engine)
    assert repr(typed.c.code.type) == "BQVec(dim=4, transform=7, declare=True)"
    assert str(typed.c.code.type.compile(engine.dialect)) == "BQVEC(4, 7)"
    with pytest.raises(ValueError, match="expected dim with declare=True"):
        BQVec(transform=7, declare=True)
    bq_columns = Table("bq_columns", MetaData(), autoload_with=engine)  # warns of no type
    assert "statistics" in bq_columns.c
    (index,) = inspect(engine).get_indexes("items")
    assert index["dialect_options"]["postgresql_using"] == "bq"
    assert index["dialect_options"]["postgresql_with"] == {"lists": "4"}


@pytest.mark.usefixtures("bq_pgvector")
def test_an_index_on_vectors_is_made_used_and_reflected(
    engine: Engine, vectors: np.ndarray
) -> None:
    metadata = MetaData()
    notes = Table(
        "notes",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("tenant", Integer),
        Column("embedding", pgvector.HALFVEC(DIM)),
    )
    Index(
        "ix_notes",
        notes.c.embedding,
        notes.c.tenant,
        postgresql_using="bq",
        postgresql_ops={"embedding": "halfvec_cosine_ops"},
        postgresql_with={"recall": 0.95},
    )
    metadata.create_all(engine)
    statement = (
        select(notes.c.id)
        .where(notes.c.tenant == 1)
        .order_by(notes.c.embedding.cosine_distance(vectors[7]))
        .limit(3)
    )
    with engine.begin() as connection:
        rows = [{"id": i, "tenant": i % 2, "embedding": v} for i, v in enumerate(vectors)]
        connection.execute(notes.insert(), rows)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = statement.compile(engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(connection.scalars(text(f"EXPLAIN {query}")))
        assert "Index Scan using ix_notes" in plan and "Index Cond: (tenant = 1)" in plan
        found = connection.scalars(statement).all()
    near = [i for i in np.argsort(exact_distances(vectors, vectors[7], "cosine")) if i % 2]
    assert found == near[:3]
    (index,) = inspect(engine).get_indexes("notes")
    assert index["column_names"] == ["embedding", "tenant"]
    options = index["dialect_options"]
    assert options["postgresql_using"] == "bq"
    assert options["postgresql_with"] == {"recall": "0.95"}
    # made again elsewhere from what was reflected
    reflected = Table("notes", MetaData(), autoload_with=engine)
    notes.drop(engine)
    reflected.create(engine)
    (again,) = inspect(engine).get_indexes("notes")
    assert again == index


# -- nearest --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_nearest_is_exact_with_all_rows_reranked(
    engine: Engine, vectors: np.ndarray, metric: Any
) -> None:
    exact = exact_distances(vectors, vectors[11], metric)
    with Session(engine) as session:
        rows = session.execute(
            nearest(
                Item,
                code=Item.code,
                vector=Item.embedding,
                query=vectors[11],
                metric=metric,
                k=5,
                rerank=ROWS,
            )
        ).all()
    assert [item.id for item, _ in rows] == np.argsort(exact)[:5].tolist()
    # relative to the largest inner product that float32 could have lost digits of
    np.testing.assert_allclose([row.distance for row in rows], np.sort(exact)[:5], atol=2e-5)


def test_nearest_reranks_only_candidates(engine: Engine, vectors: np.ndarray) -> None:
    by_code = select(Item.id).order_by(Item.code.cosine_distance(vectors[11])).limit(8)
    statement = nearest(
        select(Item.id), code=Item.code, vector=Item.embedding, query=vectors[11], k=4, rerank=2
    )
    exact = exact_distances(vectors, vectors[11], "cosine")
    with Session(engine) as session:
        candidates = session.scalars(by_code).all()
        found = session.scalars(statement).all()
    assert found == sorted(candidates, key=lambda i: exact[i])[:4]


def test_nearest_by_code_alone(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer
) -> None:
    distance = Item.code.l2_distance(vectors[2])
    query = quantizer.query(vectors[2])
    with Session(engine) as session:
        expected = session.execute(select(Item.id, distance).order_by(distance).limit(3)).all()
        found = session.execute(
            nearest(select(Item.id), code=Item.code, query=query, metric="l2", k=3)
        ).all()
    assert found == expected


def test_nearest_takes_joins_filters_and_columns(engine: Engine, vectors: np.ndarray) -> None:
    exact = exact_distances(vectors, vectors[20], "cosine")
    odd = [i for i in np.argsort(exact).tolist() if i % 2][:6]
    statement = nearest(
        select(Kind.name.label("kind"), Item.id, Item).join(Item.kind),
        code=Item.code,
        vector=Item.embedding,
        query=vectors[20],
        k=6,
        rerank=ROWS,
        where=Kind.name == "odd",
    )
    with Session(engine) as session:
        rows = session.execute(statement).all()
        assert [row.id for row in rows] == odd
        assert [(row.kind, row.Item.id) for row in rows] == [("odd", i) for i in odd]
        # an entity like any other: known to the session, with its relationships
        assert rows[0].Item is session.get(Item, odd[0])
        assert rows[0].Item.kind.name == "odd"


def test_nearest_takes_tables_and_aliases(engine: Engine, vectors: np.ndarray) -> None:
    table = Base.metadata.tables["items"]
    other = aliased(Item)
    with Session(engine) as session:
        row = session.execute(
            nearest(table, code=table.c.code, vector=table.c.embedding, query=vectors[9], k=1)
        ).one()
        item = session.scalars(
            nearest(other, code=other.code, vector=other.embedding, query=vectors[9], k=1)
        ).one()
    assert row.id == item.id == 9
    assert row.distance == pytest.approx(0, abs=1e-6)


def test_nearest_takes_the_transform_of_one_statement(engine: Engine, vectors: np.ndarray) -> None:
    table = Table("items", MetaData(), autoload_with=engine)  # reflection knows no transform
    codes = type_coerce(table.c.code, BQVec(DIM, transform=TRANSFORM))
    statement = nearest(
        select(table.c.id), code=codes, vector=table.c.embedding, query=vectors[9], k=1
    )
    with engine.connect() as connection:
        assert connection.scalars(statement).all() == [9]


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_nearest_is_made_once_and_executed_with_many_vectors(
    engine: Engine, vectors: np.ndarray, metric: Any
) -> None:
    options: dict[str, Any] = {"code": Item.code, "vector": Item.embedding, "metric": metric}
    once = nearest(Item, query=bindparam("query"), k=4, **options)
    with Session(engine) as session:
        for i in range(12):  # psycopg prepares it meanwhile
            session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
            found = session.execute(once, {"query": vectors[i]}).all()
            each = session.execute(nearest(Item, query=vectors[i], k=4, **options)).all()
            assert [(item.id, distance) for item, distance in found] == [
                (item.id, distance) for item, distance in each
            ]
    plan = explain(engine, once, {"query": vectors[0]})
    assert any("Index Scan using ix_items_code" in line for line in plan), plan
    assert any("InitPlan" in line for line in plan), plan  # evaluated once


def test_nearest_takes_a_parameter_for_a_query_and_the_vector_of_a_row(
    engine: Engine, vectors: np.ndarray, quantizer: pybq.Quantizer
) -> None:
    by_code = nearest(select(Item.id), code=Item.code, query=bindparam("query"), k=3)
    other = aliased(Item)
    like_row = select(other.embedding).where(other.id == 9).scalar_subquery()
    with Session(engine) as session:
        found = session.execute(by_code, {"query": quantizer.query(vectors[8])}).all()
        assert (
            found
            == session.execute(
                nearest(select(Item.id), code=Item.code, query=vectors[8], k=3)
            ).all()
        )
        with pytest.raises(StatementError, match="expected a Query, got list"):
            session.execute(by_code, {"query": vectors[8].tolist()})
        for options in ({}, {"vector": Item.embedding}):
            alike = nearest(select(Item.id), code=Item.code, query=like_row, k=3, **options)
            of_vector = nearest(select(Item.id), code=Item.code, query=vectors[9], k=3, **options)
            assert session.scalars(alike).all() == session.scalars(of_vector).all()


def test_nearest_limits_are_known_to_the_planner(engine: Engine, vectors: np.ndarray) -> None:
    statement = nearest(Item, code=Item.code, vector=Item.embedding, query=vectors[9], k=3)
    executed: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: executed.append(arguments[2]))
    with Session(engine) as session:
        session.scalars(statement).all()
    (sql,) = executed
    assert "LIMIT 12" in sql and sql.rstrip().endswith("LIMIT 3")


def test_nearest_says_what_it_expects(vectors: np.ndarray, quantizer: pybq.Quantizer) -> None:
    def find(**options: Any) -> Any:
        return nearest(Item, **{"code": Item.code, "query": vectors[0], **options})

    with pytest.raises(ValueError, match="expected k of at least 1, got 0"):
        find(k=0)
    with pytest.raises(ValueError, match="expected a finite rerank of at least 1, got 0.5"):
        find(rerank=0.5)
    with pytest.raises(ValueError, match="expected metric of cosine, l2, inner_product"):
        find(metric="dot")
    with pytest.raises(TypeError, match="expected a vector to re-rank by, got Query"):
        find(query=quantizer.query(vectors[0]), vector=Item.embedding)
    with pytest.raises(TypeError, match="expected a vector to re-rank by, got Query"):
        find(query=bindparam("query", type_=BQQuery()), vector=Item.embedding)


def test_async_engine(engine: Engine, conn: Conn, vectors: np.ndarray) -> None:
    pytest.importorskip("greenlet")

    async def search() -> tuple[list[int], pybq.Code | None]:
        async_engine = create_async_engine(
            "postgresql+psycopg://", connect_args=conn.info.get_parameters()
        )
        async with AsyncSession(async_engine) as session:
            session.add(Pair(id=1, code=bq_encode(vectors[0], TRANSFORM)))
            await session.commit()
            statement = nearest(Item, code=Item.code, vector=Item.embedding, query=vectors[4], k=2)
            items = (await session.scalars(statement)).all()
            code = await session.scalar(select(Pair.code).where(Pair.code == items[0].code))
            assert code is None
            code = await session.scalar(select(Pair.code))
        await async_engine.dispose()
        return [item.id for item in items], code

    found, code = asyncio.run(search())
    assert found[0] == 4
    assert code == pybq.Code.from_numpy(pybq.Quantizer(DIM, TRANSFORM).encode(vectors[0]))


@pytest.mark.slow
def test_a_model_passes_mypy_strict(tmp_path: Any) -> None:
    mypy = pytest.importorskip("mypy.api")
    model = tmp_path / "model.py"
    model.write_text(
        """
import numpy as np
import pybq
from pybq.sqlalchemy import BQVec, bq_encode, nearest
from sqlalchemy import Index, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

class Base(DeclarativeBase):
    pass

class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[pybq.Code] = mapped_column(BQVec(8, transform=1))

Index("ix_items_code", Item.code, postgresql_using="bq", postgresql_with={"lists": 100})

def find(session: Session, query: list[float]) -> list[Item]:
    session.add(Item(id=1, code=bq_encode(query, 1)))
    ordered = select(Item.id).order_by(Item.code.cosine_distance(np.ones(8))).limit(3)
    ids: list[int] = list(session.scalars(ordered))
    for item, distance in session.execute(nearest(Item, code=Item.code, query=query)):
        norm: float = item.code.norm + distance
        ids.append(item.title)
    return list(session.scalars(nearest(select(Item), code=Item.code, query=query, k=len(ids))))
"""
    )
    arguments = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", str(model)]
    output, errors, _ = mypy.run(arguments)
    # One mistake is put there on purpose: types must get through, not just Any.
    # Before 2.1 a Select had no type for a further column.
    mistake = f'{model}:24: error: "Item" has no attribute "title"  [attr-defined]'
    expected = [] if sqlalchemy.__version__.startswith("2.0.") else [mistake]
    found = [line for line in output.splitlines() if line.startswith(str(model))]
    assert found == expected, output + errors
