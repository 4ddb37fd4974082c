"""Make the demo's data: a fixed random part of the full set of WordNet glosses.

    python demo/data/make.py FOLDER

FOLDER holds wordnet.npz (int8 rows and a float32 scale per row: base, base_scale, queries,
queries_scale) and wordnet.txt.gz (the gloss of each row, base rows first, then the queries).
"""

import argparse
import gzip
import pathlib
import re

import numpy as np

HERE = pathlib.Path(__file__).parent
ROWS = 10_000
QUERIES = 200
SEED = 384
# Sentences that say something to a reader: not a bare name, not a page, nothing coarse.
LENGTH = range(40, 161)
UNWANTED = re.compile(
    r"\bgenus\b|offensive|slur|obscene|vulgar|disparag|sexual|copulat|coitus", re.IGNORECASE
)


def choose(texts: list[str], n: int, generator: np.random.Generator) -> np.ndarray:
    """Return n sorted row numbers of distinct, readable texts."""
    first = {t: i for i, t in reversed(list(enumerate(texts)))}
    wanted = [i for t, i in first.items() if len(t) in LENGTH and not UNWANTED.search(t)]
    return np.sort(generator.choice(np.sort(wanted), n, replace=False))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's data.")
    parser.add_argument("folder", type=pathlib.Path, help="where the full set is")
    folder = parser.parse_args().folder

    with gzip.open(folder / "wordnet.txt.gz", "rt", encoding="utf-8") as file:
        texts = file.read().splitlines()
    generator = np.random.default_rng(SEED)
    with np.load(folder / "wordnet.npz") as full:
        n = len(full["base"])
        base = choose(texts[:n], ROWS, generator)
        queries = choose(texts[n:], QUERIES, generator)
        np.savez_compressed(
            HERE / "glosses.npz",
            base=full["base"][base],
            base_scale=full["base_scale"][base],
            queries=full["queries"][queries],
            queries_scale=full["queries_scale"][queries],
        )
    chosen = [texts[i] for i in base] + [texts[n + i] for i in queries]
    # No name and no time in the gzip header: the same input gives the same bytes.
    with open(HERE / "glosses.txt.gz", "wb") as raw:
        with gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
            packed.write(("\n".join(chosen) + "\n").encode())
    print(f"{ROWS} glosses and {QUERIES} held-out queries, seed {SEED}")


if __name__ == "__main__":
    main()
