"""`python -m pybq`, and the command `pybq`."""

from __future__ import annotations

import sys

from pybq.errors import EXTRAS, needed_by


def main() -> None:
    try:
        with needed_by("the command pybq"):
            from pybq._cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        sys.exit(str(error))
    app(prog_name="pybq")


if __name__ == "__main__":
    main()
