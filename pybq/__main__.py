"""`python -m pybq`, and the command `pybq`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from pybq._cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit('the command pybq needs typer and rich; run pip install "pybq[cli]"')
    app(prog_name="pybq")


if __name__ == "__main__":
    main()
