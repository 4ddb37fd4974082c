"""pybq.django in a project of its own: migrations, queries, and pgvector.django beside it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from pages import DOCS, NOT_RUN, Reader, read_blocks
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shared import SEED, Conn, exact_distances

import pybq
from pybq.psycopg import register_bq

django = pytest.importorskip("django", reason="needs Django: make test-frameworks")

DIM = 16
ROWS = 300
DATABASE = "bq_test_django"

SETTINGS = """
INSTALLED_APPS = ["django.contrib.postgres", "shop"]
DATABASES = {connections!r}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "none"
USE_TZ = True
"""

MODELS = """
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector
from django.db import models
from pgvector.django import HalfVectorField, VectorField

from pybq.django import BQIndex, BQVecField


class Document(models.Model):
    tenant = models.IntegerField()
    embedding = HalfVectorField(dimensions=16)

    class Meta:
        indexes = [
            BQIndex(
                fields=["embedding", "tenant"],
                opclasses=["halfvec_cosine_ops"],
                lists=2,
                recall=0.95,
                name="document_embedding",
            )
        ]


class Sample(models.Model):
    code = BQVecField(dim=16, transform=1)
    typed = BQVecField(dim=16, transform=7, declare=True, null=True)
    loose = BQVecField(null=True)

    class Meta:
        indexes = [BQIndex(fields=["code"], name="sample_code")]


class Note(models.Model):
    number = models.IntegerField(primary_key=True, db_column="nr")
    document = models.ForeignKey(Document, on_delete=models.CASCADE)
    body = models.TextField()
    embedding = VectorField(dimensions=16, null=True)

    class Meta:
        indexes = [
            BQIndex(fields=["embedding"], opclasses=["vector_cosine_ops"], name="note_embedding"),
            GinIndex(SearchVector("body", config="english"), name="note_words"),
        ]
"""

GENERATED = """

from pybq.django import BQEncode


class Page(models.Model):
    embedding = HalfVectorField(dimensions=16)
    code = models.GeneratedField(
        expression=BQEncode("embedding", transform=3),
        output_field=BQVecField(dim=16, transform=3),
        db_persist=True,
    )

    class Meta:
        indexes = [BQIndex(fields=["code"], name="page_code")]
"""

FIRST = """
from django.db import migrations

from pybq.django import BQPgvectorExtension


class Migration(migrations.Migration):
    operations = [BQPgvectorExtension()]
"""


class Project:
    """A folder with settings and one app; its commands run in processes of their own."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        parts = conninfo_to_dict(dsn)
        options = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts["user"],
            "HOST": parts.get("host", ""),
            "PORT": parts.get("port", ""),
        }
        bound = {**options, "OPTIONS": {"server_side_binding": True}}
        (folder / "shop" / "migrations").mkdir(parents=True)
        for package in ("shop", "shop/migrations"):
            (folder / package / "__init__.py").touch()
        text = SETTINGS.format(connections={"default": options, "bound": bound})
        (folder / "project_settings.py").write_text(text)
        (folder / "shop" / "migrations" / "0001_bq.py").write_text(FIRST)
        self.write_models(MODELS + (GENERATED if django.VERSION >= (5, 0) else ""))

    def write_models(self, text: str) -> None:
        self.models = text
        (self.folder / "shop" / "models.py").write_text(text)

    def manage(self, *arguments: str) -> str:
        return self.run("-m", "django", *arguments)

    def run(self, *arguments: str) -> str:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "project_settings",
            "PYTHONPATH": os.pathsep.join([str(self.folder), *sys.path]),
        }
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def connect(self) -> Conn:
        return psycopg.connect(self.dsn, autocommit=True)

    def index(self, name: str) -> str | None:
        """The definition of an index, as the catalog has it."""
        with self.connect() as conn:
            row = conn.execute("SELECT pg_get_indexdef(to_regclass(%s))", [name]).fetchone()
        assert row is not None
        return row[0]


def provide(server: str, name: str) -> str:
    """A database without any extension; how to connect to it."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}")
    return make_conninfo(server, dbname=name)


@pytest.fixture(scope="module")
def project(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose migrations were made and run; Django is set up in this process, too."""
    folder = tmp_path_factory.mktemp("project")
    project = Project(folder, provide(server, DATABASE))
    project.manage("makemigrations", "shop")
    project.manage("migrate", "--verbosity=0")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    patch.setenv("DJANGO_SETTINGS_MODULE", "project_settings")
    django.setup()
    yield project
    from django.db import connections

    connections.close_all()
    patch.undo()
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture(scope="module")
def vectors() -> Any:
    return np.random.default_rng((SEED, 6)).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def shop(project: Project, vectors: Any) -> Any:
    """The models, and rows in their tables."""
    models = importlib.import_module("shop.models")
    quantizer = pybq.Quantizer(DIM, 1)
    models.Document.objects.bulk_create(
        models.Document(id=i, tenant=i % 3, embedding=v) for i, v in enumerate(vectors)
    )
    # by turns what a field takes
    forms = (lambda v: v, lambda v: v.tolist(), lambda v: pybq.Code(quantizer.encode(v)))
    models.Sample.objects.bulk_create(
        models.Sample(id=i, code=forms[i % 3](v), typed=v) for i, v in enumerate(vectors)
    )
    return models


@pytest.fixture
def scratch(server: str, tmp_path: Path) -> Iterator[Project]:
    """A project that a test may change; nothing was migrated."""
    yield Project(tmp_path, provide(server, f"{DATABASE}_scratch"))
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {DATABASE}_scratch WITH (FORCE)")


# -- migrations -------------------------------------------------------------------------------


def test_migrations_make_what_the_models_say(project: Project) -> None:
    assert project.index("document_embedding") == (
        "CREATE INDEX document_embedding ON public.shop_document USING bq"
        " (embedding halfvec_cosine_ops, tenant) WITH (lists='2', recall='0.95')"
    )
    code = project.index("sample_code")
    assert code == "CREATE INDEX sample_code ON public.shop_sample USING bq (code)"
    with project.connect() as conn:
        rows = conn.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'shop_sample'::regclass AND attnum > 1 ORDER BY attnum"
        ).fetchall()
    assert rows == [("code", "bqvec(16)"), ("typed", "bqvec(16,7)"), ("loose", "bqvec")]


def test_migrations_have_public_names(project: Project) -> None:
    """They are kept for years: a name in one must not be that of a file."""
    (migration,) = (project.folder / "shop" / "migrations").glob("0002*.py")
    names = set(re.findall(r"pybq[\w.]+", migration.read_text()))
    known = {"pybq.django", "pybq.django.BQIndex", "pybq.django.BQVecField"}
    assert known <= names <= known | {"pybq.django.BQEncode"}


def test_nothing_is_left_to_migrate(project: Project) -> None:
    assert "No changes" in project.manage("makemigrations", "--check", "--dry-run")


def test_a_changed_option_makes_the_index_anew(scratch: Project) -> None:
    scratch.manage("makemigrations", "shop")
    scratch.manage("migrate", "--verbosity=0")
    scratch.write_models(scratch.models.replace("recall=0.95", "recall=0.99, transform=5"))
    assert "Remove index" in scratch.manage("makemigrations", "shop", "--name=better")
    scratch.manage("migrate", "--verbosity=0")
    index = scratch.index("document_embedding")
    assert index is not None and index.endswith(
        "(embedding halfvec_cosine_ops, tenant) WITH (lists='2', recall='0.99', transform='5')"
    )
    assert "No changes" in scratch.manage("makemigrations", "--check", "--dry-run")
    # and back, to the very beginning
    scratch.manage("migrate", "shop", "0002", "--verbosity=0")
    index = scratch.index("document_embedding")
    assert index is not None and index.endswith("WITH (lists='2', recall='0.95')")
    scratch.manage("migrate", "shop", "zero", "--verbosity=0")
    with scratch.connect() as conn:
        query = "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"
        # which may have been there before
        assert conn.execute(query).fetchall() == [("bq",), ("vector",)]


def test_indexes_are_made_beside_writers(scratch: Project) -> None:
    (scratch.folder / "shop" / "migrations" / "0003_beside.py").write_text(
        """
from django.contrib.postgres.operations import AddIndexConcurrently
from django.contrib.postgres.indexes import OpClass
from django.db import migrations, models
from django.db.models.functions import Cast
from pgvector.django import VectorField

from pybq.django import BQIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("shop", "0002_initial")]
    operations = [
        AddIndexConcurrently(
            "document",
            BQIndex(
                OpClass(Cast("embedding", VectorField(dimensions=16)), name="vector_l2_ops"),
                condition=models.Q(tenant=1),
                name="document_l2",
            ),
        )
    ]
"""
    )
    beside = scratch.folder / "shop" / "migrations" / "0003_beside.py"
    text = beside.read_text()
    beside.unlink()
    scratch.manage("makemigrations", "shop", "--name=initial")
    beside.write_text(text)
    assert "CONCURRENTLY" in scratch.manage("sqlmigrate", "shop", "0003")
    scratch.manage("migrate", "--verbosity=0")
    index = scratch.index("document_l2")
    assert index is not None
    assert index.endswith("bq (((embedding)::vector(16)) vector_l2_ops) WHERE (tenant = 1)")


# -- queries ----------------------------------------------------------------------------------


def plan(queryset: Any) -> str:
    """How the server would run it if it could help it to sort."""
    from django.db import connection, transaction

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        return str(queryset.explain(format="json"))


def test_pgvectors_distances_use_the_index(shop: Any, vectors: Any) -> None:
    import pgvector
    import pgvector.django as theirs

    from pybq import django as ours

    exact = exact_distances("cosine", vectors[1::3].astype(np.float16), vectors[4])
    for distance in (theirs.CosineDistance, ours.CosineDistance):
        nearest = shop.Document.objects.filter(tenant=1).order_by(
            distance("embedding", vectors[4])
        )[:10]
        assert [d.id for d in nearest] == (1 + 3 * exact.argsort()[:10]).tolist()
        assert "document_embedding" in plan(nearest) and "Index Cond" in plan(nearest)
    query = pgvector.HalfVector(vectors[4].tolist())
    nearest = shop.Document.objects.annotate(d=ours.CosineDistance("embedding", query))
    assert nearest.order_by("d").first().id == 4
    assert abs(nearest.order_by("d").first().d) < 1e-3
    for name in ("L2Distance", "MaxInnerProduct"):
        by_ours, by_theirs = (
            list(shop.Document.objects.order_by(getattr(module, name)("embedding", vectors[7]))[:5])
            for module in (ours, theirs)
        )
        assert by_ours == by_theirs


@pytest.mark.parametrize("using", ["default", "bound"])
def test_codes_are_searched(project: Project, shop: Any, vectors: Any, using: str) -> None:
    from django.db.models import Value

    from pybq.django import CosineDistance, HammingDistance, L2Distance, MaxInnerProduct

    quantizer = pybq.Quantizer(DIM, 1)
    samples = shop.Sample.objects.using(using)
    query = quantizer.query(vectors[5])
    with project.connect() as conn:
        register_bq(conn)
        for distance, sign in (
            (CosineDistance, "<=>"),
            (L2Distance, "<->"),
            (MaxInnerProduct, "<#>"),
        ):
            rows = conn.execute(
                f"SELECT id, code {sign} %s AS d FROM shop_sample ORDER BY 2, 1 LIMIT 10", [query]
            ).fetchall()
            for form in (vectors[5], vectors[5].tolist(), query, Value(query.to_text())):
                nearest = samples.annotate(d=distance("code", form)).order_by("d", "id")[:10]
                assert [(s.id, s.d) for s in nearest] == rows
    nearest = samples.order_by(HammingDistance("code", vectors[5]))[:1]
    code = pybq.Code(quantizer.encode(vectors[5]))
    assert nearest[0].id == 5 and nearest[0].code == code
    assert samples.order_by(HammingDistance("code", code)).first().id == 5
    for each in (CosineDistance("code", vectors[5]), HammingDistance("code", vectors[5])):
        assert "sample_code" in plan(shop.Sample.objects.order_by(each)[:3])
    # the transform is that of the column
    assert samples.order_by(CosineDistance("typed", vectors[9])).first().id == 9


def test_codes_are_what_was_assigned(shop: Any, vectors: Any) -> None:
    from django.db.models import F

    from pybq.django import BQEncode

    for sample in shop.Sample.objects.filter(id__lt=6):
        assert sample.code == pybq.Code(pybq.Quantizer(DIM, 1).encode(vectors[sample.id]))
        assert sample.typed == pybq.Code(pybq.Quantizer(DIM, 7).encode(vectors[sample.id]))
        assert sample.loose is None
    code = shop.Sample.objects.get(id=3).code
    assert shop.Sample.objects.filter(code=code).get().id == 3
    assert shop.Sample.objects.filter(code__in=[code]).get().id == 3
    changed = shop.Sample.objects.create(id=1000, code=vectors[0], loose=vectors[0][:8])
    changed.code = vectors[1]
    changed.save()
    changed.refresh_from_db()
    assert changed.code == shop.Sample.objects.get(id=1).code
    assert changed.loose == pybq.Code(pybq.Quantizer(8).encode(vectors[0][:8]))
    shop.Sample.objects.bulk_update([shop.Sample(id=1000, code=vectors[2])], ["code"])
    assert shop.Sample.objects.get(id=1000).code == shop.Sample.objects.get(id=2).code
    shop.Sample.objects.filter(id=1000).update(loose=F("code"))
    assert shop.Sample.objects.get(id=1000).loose == shop.Sample.objects.get(id=2).code
    changed.delete()
    made = shop.Document.objects.annotate(code=BQEncode("embedding", 3)).get(id=2).code
    assert made.transform == 3 and made.dim == DIM


def test_queries_come_from_the_database(shop: Any) -> None:
    from pybq.django import BQQuery, CosineDistance

    like = BQQuery(shop.Document.objects.filter(id=8).values("embedding"), 1)
    nearest = shop.Sample.objects.order_by(CosineDistance("code", like))[:3]
    assert nearest[0].id == 8
    assert "sample_code" in plan(nearest)


@pytest.mark.skipif(django.VERSION < (5, 0), reason="GeneratedField is new in Django 5.0")
def test_the_server_keeps_generated_codes(shop: Any, vectors: Any) -> None:
    from pybq.django import CosineDistance

    shop.Page.objects.bulk_create(shop.Page(id=i, embedding=v) for i, v in enumerate(vectors[:50]))
    nearest = shop.Page.objects.order_by(CosineDistance("code", vectors[30]))
    assert nearest.first().id == 30
    shop.Page.objects.filter(id=31).update(embedding=vectors[100])
    assert shop.Page.objects.order_by(CosineDistance("code", vectors[100])).first().id == 31
    assert "page_code" in plan(nearest[:3])


def test_wrong_operands_are_refused(shop: Any, vectors: Any) -> None:
    from pybq.django import BQVecField, CosineDistance, HammingDistance

    quantizer = pybq.Quantizer(DIM, 1)
    code, query = pybq.Code(quantizer.encode(vectors[0])), quantizer.query(vectors[0])
    with pytest.raises(TypeError, match="got Code; see HammingDistance"):
        shop.Sample.objects.order_by(CosineDistance("code", code)).first()
    with pytest.raises(TypeError, match="got Query; see CosineDistance"):
        shop.Sample.objects.order_by(HammingDistance("code", query)).first()
    with pytest.raises(ValueError, match="16"):
        shop.Sample.objects.order_by(CosineDistance("code", [1, 2, 3])).first()
    with pytest.raises(ValueError, match="16"):
        shop.Sample(code=[1, 2, 3]).save()
    with pytest.raises(ValueError, match=r"shape \(dim,\)"):
        CosineDistance("code", vectors[:2])
    with pytest.raises(ValueError, match="declare"):
        BQVecField(declare=True)
    with pytest.raises(ValueError, match="transform"):
        BQVecField(dim=4, transform=-1)


def test_expressions_are_compared_by_value(vectors: Any) -> None:
    from pybq.django import CosineDistance

    one, same, other = (CosineDistance("code", v) for v in (vectors[0], vectors[0], vectors[1]))
    assert one == same and hash(one) == hash(same) and one != other


def test_codes_are_dumped_and_loaded(shop: Any) -> None:
    from django.core import serializers
    from django.forms import modelform_factory

    samples = list(shop.Sample.objects.filter(id__lt=3))
    text = serializers.serialize("json", samples)
    assert json.loads(text)[0]["fields"]["code"] == samples[0].code.to_text()
    for loaded, sample in zip(serializers.deserialize("json", text), samples, strict=True):
        assert loaded.object.code == sample.code and loaded.object.loose is None
        loaded.save()
    assert list(modelform_factory(shop.Sample, fields="__all__").base_fields) == []


def test_the_page_runs(scratch: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its project, but for the database."""
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)  # of other tests
    page = DOCS / "django.md"
    folder = tmp_path / "page"
    folder.mkdir()
    settings = (scratch.folder / "project_settings.py").read_text()
    (databases,) = re.findall(r"^DATABASES = .*$", settings, re.M)
    with Reader(page, folder) as reader:
        for block in read_blocks(page):
            if NOT_RUN.match(block.comment):
                continue
            if block.section == "Codes in a column" and django.VERSION < (5, 0):
                continue
            reader.run(block)
            if block.file == "trial/settings.py":
                with (folder / block.file).open("a") as file:
                    file.write(databases)


# -- words beside a vector --------------------------------------------------------------------


@pytest.fixture(scope="module")
def notes(shop: Any, vectors: Any) -> Any:
    words = ["quick foxes", "a lazy dog", "the dog and the fox", "rivers run", "foxy 100% dog"]
    shop.Note.objects.bulk_create(
        shop.Note(number=i, document_id=i % 20, body=words[i % 5], embedding=v)
        for i, v in enumerate(vectors)
    )
    # one that only words find
    shop.Note.objects.create(number=1000, document_id=0, body="one dog without a vector")
    return shop.Note.objects


@pytest.mark.parametrize("using", ["default", "bound"])
def test_two_lists_are_fused_as_the_table_does(
    project: Project, notes: Any, vectors: Any, using: str
) -> None:
    from pgvector.django import CosineDistance

    from pybq.django import hybrid

    near = CosineDistance("embedding", vectors[7])
    with project.connect() as conn:
        table = pybq.Table(conn, "shop_note")
        for words, options in (
            ("fox", {}),
            ("dog -lazy", {"weights": (0.5, 2), "rrf": 10}),
            ('"lazy dog" or river', {"depth": 7, "k": 9}),
            ("without", {"k": 3}),
            ("the", {}),  # a stop word
            ("100%s", {}),
        ):
            for where, rows in (
                ("true", notes.order_by("body")),
                ("document_id < 5", notes.filter(document__id__lt=5).select_related("document")),
            ):
                found = hybrid(
                    rows.using(using), distance=near, text="body", words=words, **options
                )
                hits = table.search(vectors[7], text=words, where=where, recall=1, **options)
                assert [(n.number, n.score, n.vector_rank, n.text_rank) for n in found] == [
                    (hit.id, hit.score, hit.vector_rank, hit.text_rank) for hit in hits
                ]
                assert len(hits) == options.get("k", 10)
    assert hybrid(notes.all(), distance=near, text="body", words="without")[0].body != ""
    assert list(hybrid(notes.none(), distance=near, text="body", words="fox")) == []


def test_both_indexes_answer(notes: Any, vectors: Any) -> None:
    from django.contrib.postgres.search import SearchVector
    from django.db import connection, transaction
    from pgvector.django import CosineDistance

    from pybq.django import hybrid

    near = CosineDistance("embedding", vectors[7])
    for text in ("body", SearchVector("body", config="english")):
        found = hybrid(
            notes.prefetch_related("document"), distance=near, text=text, words="fox", k=3
        )
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
            cursor.execute(f"EXPLAIN {found.raw_query}", found.params)
            plan = str(cursor.fetchall())
        assert "note_embedding" in plan and "note_words" in plan
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        assert [note.document.tenant for note in found]
    assert len(queries) == 2  # the search, and the documents of all


def test_what_cannot_be_fused_is_refused(shop: Any, notes: Any, vectors: Any) -> None:
    from django.db import models
    from pgvector.django import CosineDistance

    from pybq.django import hybrid

    options = {"distance": CosineDistance("embedding", vectors[7]), "text": "body", "words": "fox"}
    for wrong, message in (
        ({"words": " "}, "expected words in text"),
        ({"k": 0}, "expected k of at least 1, got 0"),
        ({"weights": (0, 0)}, "expected weights"),
        ({"queryset": notes.all()[:3]}, "neither sliced nor combined"),
        ({"queryset": notes.all().union(notes.all())}, "neither sliced nor combined"),
    ):
        with pytest.raises(ValueError, match=message):
            hybrid(**{"queryset": notes.all(), **options, **wrong})

    class Rated(models.Model):
        score = models.FloatField()

        class Meta:
            app_label = "shop"

    with pytest.raises(ValueError, match="expected a model without a field 'score'"):
        hybrid(Rated.objects.all(), **options)
    if django.VERSION < (5, 2):
        return

    class Two(models.Model):
        pk = models.CompositePrimaryKey("one", "other")
        one = models.IntegerField()
        other = models.IntegerField()

        class Meta:
            app_label = "shop"

    with pytest.raises(ValueError, match="expected a model with a primary key of one field"):
        hybrid(Two.objects.all(), **options)


# -- settings ---------------------------------------------------------------------------------


def shown(name: str = "bq.recall") -> str:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s, true)", [name])
        return str(cursor.fetchone()[0])


def test_settings_end_with_their_block(shop: Any, vectors: Any) -> None:
    from django.db import connection, transaction

    from pybq.django import CosineDistance, bq_settings

    nearest = CosineDistance("code", vectors[3])
    assert shop.Sample.objects.order_by(nearest).first().id == 3
    before = shown()
    assert before == "0"
    with bq_settings(recall=0.9, iterative_scan="off"):
        assert (shown(), shown("bq.iterative_scan")) == ("0.9", "off")
        with bq_settings(recall=0.99):
            assert shown() == "0.99"
        assert shown() == "0.9"
    assert shown() == before
    with transaction.atomic():
        with bq_settings(recall=0.9):
            assert shown() == "0.9"
        assert shown() == before
        with pytest.raises(ZeroDivisionError), bq_settings(recall=0.9, probes=7):
            raise ZeroDivisionError
        assert shown() == before
    # in a session that has not heard of bq before
    connection.close()
    with bq_settings(recall=0.9):
        assert shop.Sample.objects.order_by(nearest).first().id == 3
        assert shown() == "0.9"
    assert shop.Sample.objects.order_by(nearest).first().id == 3
    assert shown() == "0"
    with pytest.raises(TypeError, match="expected settings of recall"):
        bq_settings(recal=0.9).__enter__()


def test_settings_change_what_queries_find(shop: Any, vectors: Any) -> None:
    """All lists: as many rows as there are; one list and no more of them: fewer."""
    from django.db import connection
    from pgvector.django import CosineDistance

    from pybq.django import bq_settings

    nearest = shop.Document.objects.order_by(CosineDistance("embedding", vectors[0]))
    assert "document_embedding" in plan(nearest)
    with bq_settings(probes=1, iterative_scan="off"), connection.cursor() as cursor:
        cursor.execute("REINDEX INDEX document_embedding")  # two lists, now that there are rows
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        assert 0 < len(nearest) < ROWS
    assert len(nearest.all()) == ROWS
