"""Write the generated pages of the documentation: `python -m benchmarks.docs` (`--check` fails where one is stale).

docs/performance/ and the numbers in the README come from benchmarks/results/, the table of backends in
docs/ops_and_modules.md from the predicates of the ops.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.performance_pages import GENERATED, Machine, headline, pages
from vdiff_fast._doctor import support_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PERFORMANCE = ROOT / "docs" / "performance"
SUPPORT_TABLE, NUMBERS = "support table", "numbers"
README_MACHINE = "cpu-amd-epyc-avx512bf16-2"
README_OPS = (
    "group_norm_silu", "temporal_attention", "gated_residual_norm_modulate", "qk_norm_rope", "geglu", "gated_residual",
)  # fmt: skip


def between_marks(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks "<!-- NAME: begin -->" and "<!-- NAME: end -->"."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def generated() -> dict[Path, str]:
    """Every page that is generated, in whole or in part, and what it should hold."""
    texts = {PERFORMANCE / path: text for path, text in pages(RESULTS).items()}
    backends = ROOT / "docs" / "ops_and_modules.md"
    texts[backends] = between_marks(backends.read_text(), SUPPORT_TABLE, support_table())
    readme = ROOT / "README.md"
    numbers = headline(Machine.read(RESULTS / README_MACHINE), README_OPS, "docs/performance/")
    texts[readme] = between_marks(readme.read_text(), NUMBERS, numbers)
    return texts


def stale() -> list[Path]:
    """Pages that differ from what they should hold, and generated pages whose results are gone."""
    texts = generated()
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    orphans = [p for p in PERFORMANCE.rglob("*.md") if p not in texts and p.read_text().startswith(GENERATED)]
    return changed + orphans


def main() -> int:
    texts, changed = generated(), stale()
    if "--check" in sys.argv:
        for path in changed:
            print(f"stale: {path.relative_to(ROOT)}; run make docs")
        return 1 if changed else 0
    for path in changed:
        if path not in texts:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
