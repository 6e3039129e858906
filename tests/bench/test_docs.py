"""The generated documentation is what the results and the predicates say."""

from __future__ import annotations

from benchmarks.docs import generated


def test_generated_documentation_is_fresh() -> None:
    for path, text in generated().items():
        assert path.read_text() == text, f"{path.name} is stale: run make docs"
