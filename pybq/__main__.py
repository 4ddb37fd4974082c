"""`python -m pybq`, and the command `pybq`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from pybq._cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f'the command pybq needs {error.name}; run pip install "pybq[cli]"')
    except ImportError as error:
        if "no pq wrapper" not in str(error):  # so says psycopg
            raise
        sys.exit('the command pybq needs libpq; run pip install "pybq[binary]"')
    app(prog_name="pybq")


if __name__ == "__main__":
    main()
