"""The command `pybq` without a server: its help, and what it says of a package that is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import typer.main

from pybq import Statistics, choose
from pybq._cli.app import app
from pybq._cli.picture import draw_advice

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_and_their_options_say_what_they_are(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.rich_help_panel
    options = [param for param in command.params if param.param_type_name == "option"]
    assert options
    assert [param.name for param in options if not param.help] == []


def test_the_column_of_vectors_has_one_name() -> None:
    params = {name: command.params for name, command in COMMANDS.items()}
    tables = {name for name in params if any(p.metavar == "TABLE" for p in params[name])}
    taken = {name: {text for p in params[name] for text in p.opts} for name in tables}
    assert {"adopt", "search", "status"} <= tables
    assert {name for name in tables if "--vectors" not in taken[name]} == {"create"}
    assert "--column" in taken["adopt"]  # as before


def test_pictures_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = Statistics(4)
    statistics.update(np.eye(4, dtype=np.float32))
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r'run pip install "pybq\[plot\]"'):
        draw_advice("a.png", statistics, choose(statistics), "title")
