"""What docs/ says that can be known without a server: names, sums, figures of other pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer.__main__ import PAGES as FOR_NEWCOMERS
from newcomer.reader import steps
from pages import DOCS, PAGES, ROOT, read_blocks

import pybq


def cells(page: str, head: str) -> list[list[str]]:
    """Rows of the table whose first cell of the head is `head`."""
    lines = iter((ROOT / page).read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {head} |"):
            break
    else:
        raise AssertionError(f"no table of {head!r} in {page}")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_page_is_of_some_test() -> None:
    others = {path.name for path in DOCS.glob("*.md")} - {page.name for page in PAGES}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in others if f'"{name}"' not in tests} == set()


def test_a_comment_belongs_to_the_block_just_below(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- of no block -->\n\n```python\n## no heading\n```\n\n## Two\n\n"
        "<!-- not run: slow -->\n```python\n# a/b.py\n```\n"
    )
    found = [(block.comment, block.section, block.file) for block in read_blocks(page)]
    assert found == [("", "", None), ("<!-- not run: slow -->", "Two", "a/b.py")]


@pytest.mark.parametrize("name", FOR_NEWCOMERS)
def test_a_page_begins_by_installing_what_it_needs(name: str) -> None:
    """Or continues from one that does; `make newcomer` sees whether that is enough."""
    page, *section = FOR_NEWCOMERS[name]
    _, first = next(steps(ROOT / page, *section or [None]))
    assert first.text.startswith("pip install ")


def test_the_reference_names_all_that_is_public() -> None:
    text = (DOCS / "api.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.M)
    assert sorted(named) == sorted(dir(pybq))


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_sizes_are_bytes_of_a_row_times_rows() -> None:
    """docs/operating.md; the bytes of the index are by the rule of docs/growing.md."""
    rule = re.search(
        r"^\| index \| \*d\* / (\d+) \+ (\d+) bytes a row", (DOCS / "growing.md").read_text(), re.M
    )
    assert rule is not None
    rows = cells("docs/operating.md", "dimensions")
    assert len(rows) >= 5
    for dim, table, index, *sizes in rows:
        assert number(index) == number(dim) / int(rule[1]) + int(rule[2])
        for i, size in enumerate(sizes):
            n = 10 ** (5 + i)
            expected = [n * number(each) / 1e6 for each in (table, index)]
            assert [number(part) for part in size.split(" + ")] == [round(x) for x in expected]


def test_figures_of_the_comparison_are_those_of_the_benchmarks() -> None:
    measured = {
        kind: [pair, build]
        for kind, pair, _, build, _ in cells("benchmarks/README.md", "set, type")
    }
    names = {
        "wordnet, 116,033 x 384, `halfvec`": "wordnet, 116,033 x 384, halfvec",
        "dense, 300,000 x 384, `halfvec` (derived)": "dense-300k (derived), 300,000 x 384, halfvec",
        "wordnet-768, 50,000, `vector` (derived)": "wordnet-768 (derived), 50,000, vector",
        "wordnet-1536, 50,000, `vector` (derived)": "wordnet-1536 (derived), 50,000, vector",
    }
    rows = cells("docs/comparison.md", "set")
    assert len(rows) == len(names)
    for name, pair, build, _ in rows:
        assert [pair.removesuffix(" times"), build.removesuffix(" times")] == measured[names[name]]


def test_figures_of_a_million_rows_are_those_of_growing() -> None:
    growing = (DOCS / "growing.md").read_text()
    for words in ("16 times as long", "12 times", "took 1,189 s to build", "bq took 27 s"):
        assert words in growing
    comparison = (DOCS / "comparison.md").read_text()
    assert "16 times as long as bq at recall .95, and 12 times at .99" in comparison
    assert "took bq 27 s and HNSW 1,189 s" in (DOCS / "from-pgvector.md").read_text()


def test_figures_of_the_readme_are_those_of_the_other_pages() -> None:
    small, large = cells("README.md", "rows")
    pair, build, _ = cells("docs/comparison.md", "set")[0][1:]
    assert f"{small[1]}, {small[2]}, {small[3]}".replace(" times", "") == (
        f"{pair.removesuffix(' times')}, {build.removesuffix(' times')}"
    )
    assert (
        "| 135.8 MB / 409.6 MB | 14.0 MB / 43.9 MB |" in (ROOT / "benchmarks/README.md").read_text()
    )
    assert small[4] == f"{135.8 / 14.0:.1f} times"
    growing = (DOCS / "growing.md").read_text()
    assert "HNSW took 1,189 s to build, and 1,170 MB, where bq took 27 s and 121 MB" in growing
    ratios = (16, 12, round(1189 / 27), round(1170 / 121, 1))
    assert large[1:] == [f"{ratio} times" for ratio in ratios]


@pytest.mark.parametrize("recall", [0.98, 0.99])
def test_what_recall_costs_is_within_what_was_measured(recall: float) -> None:
    """docs/settings.md: so many times as long as at .95, from one million rows on."""
    rows = {row[0]: row[1:] for row in cells("docs/growing.md", "rows")}
    at = {
        r: [number(c.split(" (")[0]) for c in rows[f"`bq.recall` {r:.2f}".replace("0.", ".")][2:]]
        for r in (0.95, recall)
    }
    times = [y / x for x, y in zip(at[0.95], at[recall], strict=True)]
    text = (DOCS / "settings.md").read_text()
    found = re.search(
        r"to \.98 a query takes ([\d.]+) to ([\d.]+) times as long, to \.99 ([\d.]+) to ([\d.]+)",
        text,
    )
    assert found is not None
    said = found.groups()[:2] if recall == 0.98 else found.groups()[2:]
    assert said == (f"{min(times):.1f}", f"{max(times):.1f}")


def test_figures_beside_other_extensions_are_those_of_the_table() -> None:
    """What docs/comparison.md says in words of what `make bench` measured."""
    rows = {row[0]: row for row in cells("docs/comparison.md", "at recall@10")}
    text = " ".join((DOCS / "comparison.md").read_text().split())

    def at(name: str, server: str = " @ second") -> tuple[str, str]:
        """So many times as long as bq, halfvec, at recall .95 and .99."""
        return rows[name + server][4], rows[name + server][8]

    chord = [at(f"VectorChord vchordrq, {kind}") for kind in ("vector", "halfvec")]
    low, high = (sorted(column, key=float) for column in zip(*chord, strict=True))
    scale = at("pgvectorscale diskann, vector")
    assert (
        f"At recall .95 VectorChord took {' to '.join(low)} times as long as bq, pgvectorscale "
        f"{scale[0]} times; at .99, {' to '.join(high)} and {scale[1]}."
    ) in text
    ours, hnsw = at("bq, halfvec"), at("pgvector HNSW, halfvec")
    assert hnsw == at("pgvector HNSW, halfvec", server="")
    assert (
        f"bq there took {ours[0]} and {ours[1]} times as long as on the first one at recall .95 "
        f"and .99, and HNSW {hnsw[0]} and {hnsw[1]} times, as on the first."
    ) in text
    exact = rows["exact scan, halfvec"][1]
    assert f"it takes [{exact} ms](#what-one-command-measures)" in text
