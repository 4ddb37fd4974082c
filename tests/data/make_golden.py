"""Make golden.npz: vectors and their codes, as the reference computes them.

    python tests/data/make_golden.py

Codes never change: run this again only together with a new format, and say so in CHANGELOG.md.
"""

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import reference  # noqa: E402

SEED = 1960
DIMS = [1, 2, 3, 5, 7, 8, 9, 16, 31, 33, 63, 64, 65, 100, 127, 129, 255, 384, 500, 768, 1000, 1536]
TRANSFORMS = [0, 1, 65535]
CUTS = ["rms", "mean"]

generator = np.random.default_rng(SEED)
arrays = {}
for dim in DIMS:
    # uneven variances, a shifted mean, some zeros; float16 keeps the file small
    x = generator.standard_normal(dim) * generator.lognormal(0, 0.5, dim) + 0.2
    x[generator.random(dim) < 0.05] = 0
    x[0] = -1
    arrays[f"vector_{dim}"] = x.astype(np.float16)
    vector = arrays[f"vector_{dim}"].astype(np.float32)
    for transform in TRANSFORMS:
        for cut in CUTS:
            planes, norm = reference.encode(vector, transform, cut)
            payload = reference.payload(planes, dim, transform, float(norm))
            arrays[f"payload_{dim}_{transform}_{cut}"] = np.frombuffer(payload, np.uint8)
np.savez_compressed(FOLDER / "golden.npz", **arrays)
