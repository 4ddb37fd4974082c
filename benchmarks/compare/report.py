"""results.json -> the table of docs/comparison.md, and curves.  What is missing stays visible."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by `make bench-table`, not by hand -->"
END = "<!-- end of what `make bench-table` made -->"
NONE = "–"
PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
PUBLISHED = Path(__file__).with_name("published.json")  # what the table is made from

# colours that most people can tell apart (Okabe and Ito), markers for the others
STYLES: dict[str, list[tuple[str, str, str]]] = {
    "bq": [("#0072B2", "o", "-"), ("#56B4E9", "s", "-"), ("#009E73", "D", "-")],
    "pgvector": [
        ("#D55E00", "^", "-"),
        ("#E69F00", "v", "-"),
        ("#CC79A7", "<", "-"),
        ("#8C564B", ">", "-"),
        ("#000000", "X", ""),
        ("#000000", "P", ""),
    ],
    "other": [("#6A3D9A", "*", "-"), ("#B15928", "h", "-"), ("#E7298A", "d", "-")],
    "in process": [
        ("#555555", "o", ":"),
        ("#555555", "s", ":"),
        ("#999999", "^", "--"),
        ("#999999", "v", "--"),
    ],
}

Result = dict[str, Any]


# -- table --------------------------------------------------------------------------------


def table(results: Result) -> str:
    """Two tables in Markdown, and what is needed to read them."""
    reference = results["reference"]
    search = [
        f"| at recall@{results['data']['k']} | .95: ms | p95 | p99 | x {reference} | queries/s |"
        f" two clients | .99: ms | x {reference} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    cost = [
        "| | build, s | its memory, MB | index, MB | table, MB | rows/s in | 10 % filter, ms |"
        " 1 % filter, ms | cold, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    absent = []
    for name, peer in results["peers"].items():
        label = f"*{name}*" if peer.get("kind") == "in process" else name
        if "missing" in peer or "failed" in peer:
            what = "missing" if "missing" in peer else "failed"
            # plans and the like are in results.json
            absent.append(f"{name} ({what}: {textwrap.shorten(peer[what], 160)})")
            if "build" not in peer:
                label += f", {what}"
        search.append(_row(label, _search_cells(peer)))
        cost.append(_row(label, _cost_cells(peer)))
    lines = [*search, "", *cost, "", *_notes(results)]
    if absent:
        lines += ["", "Not or not fully measured: " + "; ".join(absent) + "."]
    return "\n".join(lines)


def _row(label: str, cells: list[str]) -> str:
    return "| " + " | ".join([label, *cells]) + " |"


def _search_cells(peer: Result) -> list[str]:
    at = peer.get("at", {})
    low, high = at.get("0.95", {}), at.get("0.99", {})
    clients = peer.get("clients", {})
    one = clients.get("one", low.get("qps"))
    return [
        _milliseconds(low),
        *(_number(low.get(what), 1e3) for what in ("p95", "p99")),
        _number(low.get("ratio")),
        _number(one),
        _number(clients.get("two")),
        _milliseconds(high),
        _number(high.get("ratio")),
    ]


def _cost_cells(peer: Result) -> list[str]:
    build = peer.get("build", {})
    filters = [
        _milliseconds(peer.get("filters", {}).get(column, {}).get("at", {}).get("0.95", {}))
        for column in ("tenth", "hundredth")
    ]
    has_index = bool(build.get("index"))
    return [
        _number(build.get("seconds") if has_index else None),
        _number(build.get("peak") if has_index else None, 1e-6),
        _number(build.get("index") if has_index else None, 1e-6),
        _number(build.get("table"), 1e-6),
        _number(peer.get("insertion", {}).get("rows per second")),
        *filters,
        _number(peer.get("cold", {}).get("mean"), 1e3),
    ]


def _milliseconds(at: Result) -> str:
    """The median, or how little is found whatever the setting."""
    if "at most" in at:
        return f"finds {at['at most']:.2f}"
    return _number(at.get("p50"), 1e3)


def _number(value: float | None, unit: float = 1) -> str:
    """Two digits, or the whole part if that has more."""
    if value is None:
        return NONE
    value *= unit
    if value <= 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def _notes(results: Result) -> list[str]:
    about, data, effort = results["about"], results["data"], results["effort"]
    peers = results["peers"].values()
    versions = [
        about["machine"],
        about["memory"],
        about["PostgreSQL"],
        f"pgvector {about['pgvector']}",
        f"bq {about['bq']} (commit {about['commit']})",
        *sorted({p["about"]["library"] for p in peers if "library" in p.get("about", {})}),
    ]
    others = {
        f"{p['server']}: PostgreSQL {p['about']['PostgreSQL']}, {p['about']['extension']}"
        for p in peers
        if p.get("server") and "about" in p
    }
    floors = [
        f"{_number(seconds, 1e3)} ms{' @ ' + server if server else ''}"
        for server, seconds in results.get("floor", {}).items()
    ]
    rounds = f"{effort['rounds']} rounds" + (" (`--quick`)" if effort.get("quick") else "")
    cold = "its files put out of the page cache"
    if any(not p["cold"]["dropped"] for p in peers if "cold" in p):
        cold = "the page cache as it was, which this system does not empty"
    return [
        f"{data['rows']:,} x {data['dim']}: {data['about']}. {data['queries']} held-out queries,"
        f" seed {data['seed']}, {about['started']}, load {about['load']}. "
        + "; ".join([*versions, *sorted(others)])
        + "."
        + _disturbed(about),
        "",
        "Each system at its fastest setting of the wanted recall, which is judged by exact search"
        f" in float32; all in turn, {rounds}, and ratios are medians of those"
        f" within a round. One client, in Python, whose SELECT 1 takes {', '.join(floors)}. One"
        " process answers and builds, here without fsync; its memory is what that gains of its own."
        " Filters keep rows"
        " at random, recall .95 of them: bq has the columns in its index, HNSW and IVFFlat scan"
        " iteratively, and for exact scans there are B-trees. Cold: mean of the first 20 queries"
        f" after a restart, {cold}. *In italics*: libraries in process, one thread, no server, no"
        " transactions; their index is with the vectors.",
    ]


def _disturbed(about: Result) -> str:
    """A warning where others had half of the cores or more."""
    load = float(about["load"].split()[0])
    cores = re.search(r"(\d+) cores", about["machine"])
    if cores is None or load < int(cores[1]) / 2:
        return ""
    return " **The machine was busy: ratios say more than times, and all of it wants a new run.**"


def replace_between_marks(text: str, made: str) -> str:
    """The text with what was made between its marks."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return text[: begin + len(BEGIN)] + "\n\n" + made.strip() + "\n\n" + text[end:]


# -- picture --------------------------------------------------------------------------------


def draw(results: Result, path: Path) -> None:
    """Curves of recall and queries per second, and what the systems cost; there must be some."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing needs matplotlib; run pip install "pybq[plot]"'
        ) from error

    styles = _styles(results)
    figure = Figure(figsize=(12, 10), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    axes = top.subplots()
    for name, (colour, marker, line) in styles.items():
        points = frontier(results["peers"][name].get("curve", []))
        if points:
            axes.plot(
                [_place(p["recall"]) for p in points],
                [p["qps"] for p in points],
                color=colour,
                marker=marker,
                linestyle=line or "none",
                markersize=6 if line else 10,
                linewidth=2.2 if results["peers"][name]["kind"] == "bq" else 1.4,
                label=name,
            )
    ticks = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    axes.set(
        yscale="log",
        xlim=(_place(0.78), _place(1) + 0.05),
        xticks=[*map(_place, ticks), _place(1)],
        xticklabels=[*map(str, ticks), "1"],
        xlabel=f"recall@{results['data']['k']} (share of the true neighbours that are found)",
        ylabel="queries per second, one client (log)",
    )
    axes.grid(which="major", color="#dddddd")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_title("Upper right is better; dotted and dashed: in process, no server")
    data = results["data"]
    figure.suptitle(
        f"Nearest neighbours of {data['rows']:,} x {data['dim']}", fontsize="x-large", weight="bold"
    )

    panels = bottom.subplots(1, 4, sharey=True)
    for panel, (title, figures) in zip(panels, _costs(results).items(), strict=True):
        known = [value for value in figures.values() if value > 0]
        panel.set(xscale="log", xlim=(min(known) / 2, max(known) * 8) if known else None)
        for i, (name, (colour, marker, _)) in enumerate(styles.items()):
            value = figures.get(name)
            if value:
                panel.plot(value, i, color=colour, marker=marker, markersize=8)
            at = (value, i) if value else (panel.get_xlim()[0], i)
            panel.annotate(
                _number(value), at, (8, 0), textcoords="offset points", va="center", fontsize=9
            )
        panel.set_yticks(range(len(styles)), list(styles))
        panel.set_ylim(len(styles) - 0.5, -0.5)
        panel.grid(axis="y", color="#eeeeee")
        panel.set_axisbelow(True)
        panel.set_title(title, fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _styles(results: Result) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each system that was measured.

    Those of other servers that the embedded one has, too, tell servers apart: in the table only.
    """
    used = dict.fromkeys(STYLES, 0)
    styles = {}
    for name, peer in results["peers"].items():
        base, _, server = name.partition(" @ ")
        if peer.get("curve") and not (server and base in results["peers"]):
            of_kind = STYLES[peer["kind"]]
            styles[name] = of_kind[used[peer["kind"]] % len(of_kind)]
            used[peer["kind"]] += 1
    return styles


def _costs(results: Result) -> dict[str, dict[str, float]]:
    """title of a panel -> name of a system -> figure"""
    costs: dict[str, dict[str, float]] = {
        "build, s": {},
        "index, MB": {},
        "insertion, rows/s": {},
        "1 % filter, ms (recall .95)": {},
    }
    build, index, insertion, filtered = costs.values()
    for name, peer in results["peers"].items():
        if peer.get("build", {}).get("index"):
            build[name] = peer["build"]["seconds"]
            index[name] = peer["build"]["index"] / 1e6
        if "insertion" in peer:
            insertion[name] = peer["insertion"]["rows per second"]
        at = peer.get("filters", {}).get("hundredth", {}).get("at", {}).get("0.95", {})
        if "p50" in at:
            filtered[name] = at["p50"] * 1e3
    return costs


def _place(recall: float) -> float:
    """Where a recall stands: as far from .9 to .99 as from .99 to .999; what is missed counts."""
    return -math.log10(max(1 - recall, 4e-4))


def frontier(curve: list[Result]) -> list[Result]:
    """The points that no other one beats in recall and in speed, by recall."""
    best: list[Result] = []
    for point in sorted(curve, key=lambda p: (-p["recall"], -p["qps"])):
        if not best or point["qps"] > best[-1]["qps"]:
            best.append(point)
    return best[::-1]
