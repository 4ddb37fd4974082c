"""Markdown that has autodoc describe each public module of pybq, one for each library it meets."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pybq"

# Whose names are those of pybq itself.
TOLD = {"embedded", "errors"}


def main() -> None:
    for path in sorted(PACKAGE.glob("[a-z]*.py")):
        if path.stem not in TOLD:
            print(f"## `pybq.{path.stem}`\n")
            print(f"```{{eval-rst}}\n.. automodule:: pybq.{path.stem}\n   :members:\n```\n")


if __name__ == "__main__":
    main()
