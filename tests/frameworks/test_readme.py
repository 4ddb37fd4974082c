"""The examples of README.md for frameworks run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shared import Conn

README = Path(__file__).parents[2] / "README.md"


def examples(module: str) -> str:
    """Those that import a module of ours."""
    blocks = re.findall(
        r"<!-- run by tests/frameworks -->\n\n```python\n(.*?)^```$",
        README.read_text(),
        re.S | re.M,
    )
    (found,) = (block for block in blocks if f"from pybq.{module} import" in block)
    return str(found)


def run(module: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    exec(compile(examples(module), str(README), "exec", dont_inherit=True), names)
    return capsys.readouterr().out.splitlines()


@pytest.mark.autocommit
def test_langchain(conn: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core", reason="needs LangChain: make test-frameworks")
    from .test_langchain import WordEmbeddings

    names = {"conn": conn, "embedding": WordEmbeddings()}
    apples, pears = run("langchain", names, capsys)
    assert "page_content='green apples'" in apples and "'lang': 'en'" in apples
    assert "page_content='red pears'" in pears
    assert len(names["retriever"].invoke("apples")) == 2  # type: ignore[attr-defined]


@pytest.mark.autocommit
def test_llama_index(conn: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_index.core", reason="needs LlamaIndex: make test-frameworks")
    from llama_index.core import Document

    from .test_llama_index import WordEmbedding

    documents = [Document(text="green apples"), Document(text="red pears")]
    names = {"conn": conn, "documents": documents, "model": WordEmbedding()}
    assert run("llama_index", names, capsys) == ["green apples", "red pears"]
