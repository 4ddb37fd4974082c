"""Markdown that has autodoc describe each public module of pybq, one for each library it meets."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pybq"

# Whose names are those of pybq itself.
TOLD = {"embedded", "errors"}


def main() -> None:
    files = {path.stem for path in PACKAGE.glob("[a-z]*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("[a-z]*/__init__.py")}
    for name in sorted((files | folders) - TOLD):
        print(f"## `pybq.{name}`\n")
        print(f"```{{eval-rst}}\n.. automodule:: pybq.{name}\n   :members:\n```\n")


if __name__ == "__main__":
    main()
