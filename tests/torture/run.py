"""Runs the torture table: faults injected into a running study, and what must hold after each.

    python tests/torture/run.py                     every row, minutes
    python tests/torture/run.py --only bitflips     one row
    python tests/torture/run.py --kept              the amounts that docs/reliability.md shows
    python tests/torture/run.py --hours 3           those, and then further seeds until the time is over

Prints the table and writes it as JSON, where rows that were not run now stay as they were. Exit code 1 if
anything that must hold did not.
"""

import argparse
import dataclasses
import json
import platform
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lorastudy
from torture.harness import FaultResult, module, names, temporary_folder, unavailable

ROOT = Path(__file__).resolve().parents[2]
#: Not kept: the documents show another file, `docs/reliability.json`, which is written with --kept.
RESULTS = ROOT / "results" / "torture.json"
KEPT = ROOT / "docs" / "reliability.json"
SEED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen rows; 1 if one of them was violated."""
    chosen = _parser().parse_args(arguments)
    into = chosen.into or (KEPT if chosen.kept else RESULTS)
    rows = chosen.only or names()
    seconds = chosen.hours * 3600 / len(rows)
    done: dict[str, Any] = {}
    for name in rows:
        if reason := unavailable(name):
            print(f"{name}: not run: {reason}", file=sys.stderr)
            continue
        print(f"{name}: {module(name).ROW.fault}", file=sys.stderr, flush=True)
        row = module(name).ROW
        amount = chosen.amount or (row.kept if chosen.kept or chosen.hours else row.default)
        done[name] = run_row(name, amount=amount, seed=chosen.seed, seconds=seconds)
        keep(into, {name: done[name]})
        print(_verdict(done[name]), file=sys.stderr, flush=True)
    print(table(done))
    print(f"wrote {into}")
    return 1 if any(row["num_violations"] for row in done.values()) else 0


def run_row(name: str, *, amount: int, seed: int, seconds: float) -> dict[str, Any]:
    """One row as it is kept: run once, and then with further seeds while `seconds` last."""
    start = time.monotonic()
    results = []
    while not results or time.monotonic() - start < seconds:
        with temporary_folder(name) as folder:
            results.append(module(name).run(amount=amount, seed=seed + len(results), folder=Path(folder)))
    return {
        **dataclasses.asdict(_summed(results)),
        "must": module(name).ROW.must,
        "seed": seed,
        "num_rounds": len(results),
        "seconds": round(time.monotonic() - start, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "made_with": made_with(),
    }


def keep(file: Path, rows: Mapping[str, Any]) -> None:
    """Write these rows into the file; others that it has stay."""
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(sorted({**there, **rows}.items())), indent=1) + "\n", encoding="utf-8")


def table(rows: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    lines = ["| fault | injected | must | violated | what came of it |", "|:---|---:|:---|---:|:---|"]
    for row in rows.values():
        cells = (
            row["fault"],
            f"{row['num_faults']:,}",
            row["must"],
            f"{row['num_violations']:,}",
            row["detail"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def made_with() -> dict[str, str]:
    """What the outcome may depend on."""
    return {
        "lorastudy": lorastudy.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _summed(results: Sequence[FaultResult]) -> FaultResult:
    """The counts of all rounds, with what the first one says, and every one that was violated."""
    told = [results[0], *(result for result in results[1:] if result.num_violations)]
    rounds = [f"{len(results)} rounds"] if len(results) > 1 else []
    return FaultResult(
        fault=results[0].fault,
        num_faults=sum(result.num_faults for result in results),
        num_violations=sum(result.num_violations for result in results),
        detail="; ".join([*(result.detail for result in told if result.detail), *rounds]),
    )


def _verdict(row: Mapping[str, Any]) -> str:
    word = f"VIOLATED {row['num_violations']} times" if row["num_violations"] else "held"
    return f"  {row['num_faults']} faults in {row['seconds']:.0f} s: {word}. {row['detail']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/torture/run.py")
    parser.add_argument("--only", action="append", choices=names(), help="this row alone; may be repeated")
    parser.add_argument(
        "--kept", action="store_true", help=f"the amounts that the documents show, into {KEPT.name}"
    )
    parser.add_argument(
        "--hours", type=float, default=0.0, help="go on with further seeds, shared among the rows"
    )
    parser.add_argument("--amount", type=int, help="at most so many faults a row")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--into", type=Path, help="the results file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
