"""Migrations in a real Alembic environment: autogenerate finds nothing after its own work."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, read_blocks
from shared import Conn

pytest.importorskip("alembic")

from alembic import command
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Computed,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    text,
)

from pybq.alembic import include_name, render_item
from pybq.sqlalchemy import BQVec

pgvector = pytest.importorskip("pgvector.sqlalchemy")

pytestmark = pytest.mark.usefixtures("vector")

ENV = """
from alembic import context
from pybq.alembic import include_name, render_item

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes["metadata"],
    include_name=include_name,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
"""


def make_models(
    dim: int = 16, method: str = "bq", options: dict[str, Any] | None = None, indexed: bool = True
) -> MetaData:
    metadata = MetaData()
    items = Table(
        "items",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", pgvector.HALFVEC(dim)),
        Column(
            "code",
            BQVec(dim, transform=1),
            Computed("bq_encode(embedding::real[], 1)", persisted=True),
            nullable=False,
        ),
        Column("copy", BQVec(), nullable=True),
    )
    if indexed:
        Index("ix_items_code", items.c.code, postgresql_using=method, postgresql_with=options or {})
    return metadata


@pytest.fixture
def engine(conn: Conn) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://", connect_args=conn.info.get_parameters())
    yield engine
    engine.dispose()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Callable[..., str]:
    """Run an Alembic command on the models given; returns the migration it wrote, if any."""
    config = Config(tmp_path / "alembic.ini")
    command.init(config, str(tmp_path / "migrations"))
    (tmp_path / "migrations" / "env.py").write_text(ENV)

    def run(name: str, metadata: MetaData, *arguments: Any, **options: Any) -> str:
        config.attributes["metadata"] = metadata
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            script = getattr(command, name)(config, *arguments, **options)
        return Path(script.path).read_text() if name == "revision" else ""

    return run


def revise(run: Callable[..., str], metadata: MetaData) -> str:
    """The body of a new migration, and upgrade to it."""
    script = run("revision", metadata, autogenerate=True)
    run("upgrade", metadata, "head")
    return script


def body(script: str, name: str = "upgrade") -> str:
    found = re.search(rf"def {name}\(\).*?:\n(.*?)(?=\ndef |\Z)", script, re.DOTALL)
    assert found is not None
    lines = [line.strip() for line in found[1].splitlines()]
    return "\n".join(line for line in lines if line and line[0] not in '#"')


def catalog(engine: Engine) -> list[tuple[str, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                """
                SELECT attname::text, format_type(atttypid, atttypmod)
                FROM pg_attribute WHERE attrelid = to_regclass('items') AND attnum > 0
                UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'items'
                ORDER BY 1
                """
            )
        )
        return [tuple(row) for row in rows]


def test_autogenerate_finds_nothing_after_its_own_migration(
    run: Callable[..., str], engine: Engine
) -> None:
    models = make_models(options={"LISTS": 4})  # names are folded, as all in SQL
    script = revise(run, models)
    assert "import pybq.sqlalchemy\n" in script
    assert "import pgvector.sqlalchemy" in script
    assert ("code", "bqvec(16)") in catalog(engine)
    assert ("copy", "bqvec") in catalog(engine)
    assert (
        "ix_items_code",
        "CREATE INDEX ix_items_code ON public.items USING bq (code) WITH (lists='4')",
    ) in catalog(engine)
    run("check", models)  # fails on any difference
    assert body(run("revision", models, autogenerate=True)) == "pass"


def test_downgrade_undoes_it(run: Callable[..., str], engine: Engine) -> None:
    revise(run, make_models())
    run("downgrade", make_models(), "base")
    assert catalog(engine) == []
    run("upgrade", make_models(), "head")
    run("check", make_models())


def test_change_of_index_options_is_seen(run: Callable[..., str], engine: Engine) -> None:
    revise(run, make_models(options={"lists": 4}))
    before = catalog(engine)
    changed = make_models(options={"lists": 8, "probes": 2})
    script = revise(run, changed)
    assert "op.drop_index" in body(script) and "op.create_index" in body(script)
    assert "WITH (lists='8', probes='2')" in dict(catalog(engine))["ix_items_code"]
    run("check", changed)
    run("downgrade", changed, "-1")
    assert catalog(engine) == before


def test_change_of_access_method_is_seen(run: Callable[..., str], engine: Engine) -> None:
    revise(run, make_models(method="btree"))
    script = revise(run, make_models())
    assert [line.split("(")[0] for line in body(script).splitlines()] == [
        "op.drop_index",
        "op.create_index",
    ]
    assert "USING bq" in dict(catalog(engine))["ix_items_code"]
    run("check", make_models())


def test_new_and_dropped_indexes_are_seen_once(run: Callable[..., str]) -> None:
    revise(run, make_models(indexed=False))
    assert body(revise(run, make_models())).count("op.create_index") == 1
    script = revise(run, make_models(indexed=False))
    assert body(script).count("op.drop_index") == 1
    assert "op.create_index" not in body(script)


def test_change_of_dim_is_seen(run: Callable[..., str], engine: Engine) -> None:
    metadata, wider = MetaData(), MetaData()
    Table("items", metadata, Column("code", BQVec(8)))
    Table("items", wider, Column("code", BQVec(16)))
    revise(run, metadata)
    script = revise(run, wider)
    assert "existing_type=pybq.sqlalchemy.BQVec(dim=8)" in body(script)
    assert "type_=pybq.sqlalchemy.BQVec(dim=16)" in body(script)
    assert catalog(engine) == [("code", "bqvec(16)")]


def test_missing_extensions_are_created(run: Callable[..., str], engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP EXTENSION bq; DROP EXTENSION vector"))
    script = revise(run, make_models())
    assert body(script).splitlines()[:2] == [
        "op.execute('CREATE EXTENSION IF NOT EXISTS vector')",
        "op.execute('CREATE EXTENSION IF NOT EXISTS bq')",
    ]
    assert body(script, "downgrade").splitlines()[-2:] == [
        "op.execute('DROP EXTENSION bq')",
        "op.execute('DROP EXTENSION vector')",
    ]
    run("check", make_models())
    run("downgrade", make_models(), "base")
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT extname FROM pg_extension")).all() == ["plpgsql"]


def test_an_index_alone_needs_the_extension(run: Callable[..., str], engine: Engine) -> None:
    """A model with a vector of pgvector's, and an index on what it is encoded to."""
    metadata = MetaData()
    items = Table(
        "items",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", pgvector.HALFVEC(16)),
    )
    code = text("(bq_encode(embedding::real[], 1)::bqvec(16))")
    Index("ix_items_code", code, _table=items, postgresql_using="bq")
    with engine.begin() as connection:
        connection.execute(text("DROP EXTENSION bq"))
    script = revise(run, metadata)
    assert body(script).splitlines()[0] == "op.execute('CREATE EXTENSION IF NOT EXISTS bq')"
    assert body(script, "downgrade").splitlines()[-1] == "op.execute('DROP EXTENSION bq')"
    assert "USING bq" in dict(catalog(engine))["ix_items_code"]


def test_an_index_on_vectors_needs_the_extension_for_them(
    run: Callable[..., str], engine: Engine
) -> None:
    metadata = MetaData()
    items = Table("items", metadata, Column("embedding", pgvector.HALFVEC(16)))
    classes = {"embedding": "halfvec_cosine_ops"}
    Index("ix_items", items.c.embedding, postgresql_using="bq", postgresql_ops=classes)
    with engine.begin() as connection:
        connection.execute(text("DROP EXTENSION bq CASCADE"))
        connection.execute(text("DROP EXTENSION vector"))
    script = revise(run, metadata)
    names = ["vector", "bq", "bq_pgvector"]
    assert body(script).splitlines()[:3] == [
        f"op.execute('CREATE EXTENSION IF NOT EXISTS {name}')" for name in names
    ]
    assert body(script, "downgrade").splitlines()[-3:] == [
        f"op.execute('DROP EXTENSION {name}')" for name in reversed(names)
    ]
    assert "USING bq" in dict(catalog(engine))["ix_items"]
    run("check", metadata)


def test_an_index_on_an_expression_of_vectors_needs_the_extension_for_them(
    run: Callable[..., str], engine: Engine
) -> None:
    metadata = MetaData()
    items = Table("items", metadata, Column("embedding", pgvector.VECTOR(16)))
    code = text("(embedding::halfvec(16)) halfvec_l2_ops")
    Index("ix_items", code, _table=items, postgresql_using="bq")
    script = revise(run, metadata)
    assert (
        body(script).splitlines()[0] == "op.execute('CREATE EXTENSION IF NOT EXISTS bq_pgvector')"
    )
    assert "halfvec_l2_ops" in dict(catalog(engine))["ix_items"]


def make_items(opclass: str | None, *filters: str, **options: Any) -> MetaData:
    """A model with an index on the vectors themselves."""
    metadata = MetaData()
    items = Table(
        "items",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("tenant", Integer),
        Column("lang", String),
        Column("embedding", pgvector.HALFVEC(16)),
    )
    if opclass is not None:
        Index(
            "ix_items",
            items.c.embedding,
            *(items.c[name] for name in filters),
            postgresql_using="bq",
            postgresql_ops={"embedding": opclass},
            postgresql_with=options,
        )
    return metadata


@pytest.mark.usefixtures("bq_pgvector")
def test_an_index_on_vectors_goes_round(run: Callable[..., str], engine: Engine) -> None:
    """Each change of it is seen, made, found no more, and undone."""
    models = [
        make_items(None),
        make_items("halfvec_cosine_ops"),
        make_items("halfvec_cosine_ops", "tenant", "lang"),
        make_items("halfvec_cosine_ops", "tenant", "lang", recall=0.95),
        make_items("halfvec_cosine_ops", "tenant", "lang", recall=0.9, transform=1),
        make_items("halfvec_l2_ops", "tenant", "lang", recall=0.9, transform=1),
        make_items("halfvec_l2_ops", "tenant", recall=0.9, transform=1),
        make_items(None),
    ]
    seen = []
    for metadata in models:
        script = revise(run, metadata)
        if "ix_items" in script:
            assert body(script).count("op.create_index") == (metadata is not models[-1])
        assert "EXTENSION" not in script
        run("check", metadata)
        seen.append(catalog(engine))
    definitions = [dict(each).get("ix_items") for each in seen]
    assert len({*definitions}) == len(models) - 1
    assert definitions[3] == (
        "CREATE INDEX ix_items ON public.items USING bq"
        " (embedding halfvec_cosine_ops, tenant, lang) WITH (recall='0.95')"
    )
    for metadata, before in reversed(list(zip(models, seen, strict=True))[:-1]):
        run("downgrade", metadata, "-1")
        assert catalog(engine) == before


def test_models_without_our_types_get_none_of_it(engine: Engine) -> None:
    metadata = MetaData()
    plain = Table("plain", metadata, Column("id", Integer, primary_key=True))
    Index("ix_plain", plain.c.id, postgresql_with={"fillfactor": 70})
    with engine.begin() as connection:
        connection.execute(text("DROP EXTENSION bq"))
        metadata.create_all(connection)
        plain.indexes.clear()
        Index("ix_plain", plain.c.id, postgresql_with={"fillfactor": 80})
        context = MigrationContext.configure(
            connection, opts={"include_name": include_name, "render_item": render_item}
        )
        # Alembic compares no options; those of other access methods are not ours to compare
        assert compare_metadata(context, metadata) == []
        script = produce_migrations(context, metadata)
        code = render_python_code(script.upgrade_ops, migration_context=context)
    assert "EXTENSION" not in code


@pytest.mark.once
def test_the_migration_of_the_page_runs(engine: Engine) -> None:
    """As the page has it: made concurrently, which PostgreSQL refuses within a transaction."""
    (block,) = [b for b in read_blocks(DOCS / "sqlalchemy.md") if "def upgrade" in b.text]
    names: dict[str, Any] = {}
    exec(block.text, names)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE articles (embedding vector(4), lang text)"))
        connection.commit()
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context):
            names["upgrade"]()
        where = "FROM pg_indexes WHERE indexname = 'articles_bq'"
        made = connection.scalar(text(f"SELECT indexdef {where}"))
        connection.commit()
        assert made.endswith("USING bq (embedding vector_cosine_ops, lang)")
        with context.begin_transaction(), Operations.context(context):
            names["downgrade"]()
        assert connection.scalar(text(f"SELECT count(*) {where}")) == 0
