"""Make lsa.npz: a small real set whose coordinates differ a lot in variance.

    python tests/data/make_lsa.py FOLDER

FOLDER holds lsa.npz, the full set of 40,000 rows (TF-IDF and truncated SVD of package descriptions
and news, 256 dimensions, int8 with a float32 scale per row). A random part of it is kept, with a
fixed seed: rotation wins clearly here, while the demo's glosses do as well without.
"""

import pathlib
import sys

import numpy as np

ROWS, QUERIES, SEED = 2_000, 100, 256

generator = np.random.default_rng(SEED)
with np.load(pathlib.Path(sys.argv[1]) / "lsa.npz") as full:
    base = np.sort(generator.choice(len(full["base"]), ROWS, replace=False))
    queries = np.sort(generator.choice(len(full["queries"]), QUERIES, replace=False))
    np.savez_compressed(
        pathlib.Path(__file__).with_name("lsa.npz"),
        base=full["base"][base],
        base_scale=full["base_scale"][base],
        queries=full["queries"][queries],
        queries_scale=full["queries_scale"][queries],
    )
