"""What the example studies came to in version 0.1 and now: the same stored results, judged by either version's rules.

    python docs/example_verdicts.py --into benchmarks/results/example_verdicts_0.1.json

writes what the version that it is run with says. For 0.1 it was copied into `docs/` of a checkout of 637fb3c.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measurements import analysis_of

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.findings.recommendation import recommendation

BEFORE = Path("benchmarks") / "results" / "example_verdicts_0.1.json"
#: Why something is another word now, by example and what changed.
_WHY = {
    "recommended arm": "version 0.1 took the arm that the model confidence set left alone, which is about these seeds and items; "
    "the one decision of now asks Hsu's comparisons with the best, and they do not tell the two arms apart",
    "on the frontier": "the time of a step counted, though it was measured without its noise; it counts no more",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what this version says of the examples."""
    parser = argparse.ArgumentParser(prog="python docs/example_verdicts.py")
    parser.add_argument("--into", type=Path, required=True, help="the file to write")
    chosen = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[1]
    analyses = {path.stem: analysis_of(path) for path in sorted((root / "docs" / "examples").glob("*.json"))}
    chosen.into.write_text(json.dumps(said_of(analyses), indent=1) + "\n", encoding="utf-8")
    return 0


def said_of(analyses: Mapping[str, Analysis]) -> dict[str, dict[str, Any]]:
    """By example: each arm's verdict, the arm that is recommended, and the arms on the frontier."""
    return {
        name: {
            "verdicts": {one.arm: one.verdict_words for one in analysis.primary_comparisons},
            "recommended arm": recommendation(analysis).arm or "none",
            "on the frontier": [standing.arm for standing in analysis.standings if standing.on_frontier],
        }
        for name, analysis in analyses.items()
    }


def changed_blocks(analyses: Mapping[str, Analysis], root: Path) -> list[Block]:
    """How many verdicts of the older examples are as they were, and a table of all that is not."""
    before = json.loads((root / BEFORE).read_text(encoding="utf-8"))
    now = said_of({name: analysis for name, analysis in analyses.items() if name in before})
    rows = [
        (name, what, _words(before[name][what], now[name][what]), _words(now[name][what], before[name][what]))
        for name in now
        for what in _WHY
        if before[name][what] != now[name][what]
    ]
    verdicts = [
        (name, arm, before[name]["verdicts"][arm], now[name]["verdicts"][arm])
        for name in now
        for arm in now[name]["verdicts"]
    ]
    apart = [f"{arm} in {name}: {one}, now {other}" for name, arm, one, other in verdicts if one != other]
    told = (
        f"{len(verdicts) - len(apart)} of {len(verdicts)} verdicts in {len(now)} studies are the same"
        f"{''.join(f'; {each}' for each in apart)}. What else changed:"
    )
    columns = ("Study", "What", "In 0.1", "Now", "Why")
    return [
        Paragraph((told,)),
        Table(
            columns=tuple(TableColumn(title, numeric=False) for title in columns),
            rows=tuple((*map(Cell, row), Cell(_WHY[row[1]])) for row in rows),
        ),
    ]


def _words(said: str | list[str], other: str | list[str]) -> str:
    """A name, or of a list those that the other has not."""
    if isinstance(said, str):
        return said
    return ", ".join(arm for arm in said if arm not in other) or "none of these"


if __name__ == "__main__":
    sys.exit(main())
