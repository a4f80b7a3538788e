"""Time and memory of whole commands over large data files: `prepare`, and a suite of a few steps.

    python -m benchmarks.data_memory                                  makes files of 300 MB and 3 GB, and measures
    python -m benchmarks.data_memory --source OTHER/src --commit NAME  measures another version, for a comparison

The suite trains two arms for three steps and scores 64 held-out rows, so nearly all that it costs is its data. Each
command starts with an empty cache. Writes `benchmarks/results/data-memory.json`, from which the documents' table is made;
measurements of other versions and sizes stay in it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.processes import plain_environment
from lorastudy.lab import base_folder

RESULTS = machine.ROOT / "benchmarks" / "results" / "data-memory.json"
SIZES = (300_000_000, 3_000_000_000)
COMMANDS: Mapping[str, Sequence[str]] = {
    "prepare": ("prepare", "--dataset", "rows.jsonl", "--output-dir", "prepared"),
    "suite": ("suite", "suite.yaml"),
}
_SUITE = """\
suite_name: large_file
base_model: lab
dataset_path: rows.jsonl
seeds: [0]
max_steps: 3
max_eval_samples: 64
experiment_type: rank_ablation
factors:
  lora_rank: [4, 8]
"""
_PROGRAM = "from lorastudy.cli.main import main; main()"
#: Words of the question, of the input that every third row has, and of the answer: rows of about 575 bytes.
_QUESTION, _INPUT, _ANSWER = 24, 12, 60


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command, from the start of its process to the end, with all the processes that it started."""

    commit: str
    command: str
    file_bytes: int
    num_rows: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Most resident memory of the largest process."""
    load_average: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure command after command; the file is written again after each."""
    chosen = _parser().parse_args(arguments)
    commit = chosen.commit or str(machine.commit()["name"])
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="data-memory-") as name:
            folder = Path(name)
            num_rows = write_rows(folder / "rows.jsonl", num_bytes=size)
            (folder / "suite.yaml").write_text(_SUITE, encoding="utf-8")
            for command in chosen.commands:
                load = machine.load_average()
                cost = measure(
                    [sys.executable, "-c", _PROGRAM, *COMMANDS[command]], folder=folder, source=chosen.source
                )
                found = Measured(
                    commit=commit,
                    command=command,
                    file_bytes=(folder / "rows.jsonl").stat().st_size,
                    num_rows=num_rows,
                    load_average=load,
                    **cost,
                )
                keep(chosen.into, found)
                print(json.dumps(asdict(found)), flush=True)
    return 0


def write_rows(path: Path, *, num_bytes: int) -> int:
    """Write a file of at least `num_bytes`; returns its number of rows. They are Alpaca rows of words that the lab's model knows."""
    tokenizer = json.loads((base_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    words = [word for word in tokenizer["model"]["vocab"] if word.isalpha()]
    draw = random.Random(0)
    num_rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            row = {
                "instruction": " ".join(draw.choices(words, k=_QUESTION)),
                "input": " ".join(draw.choices(words, k=_INPUT)) if num_rows % 3 == 0 else "",
                "output": " ".join(draw.choices(words, k=_ANSWER)),
            }
            written += file.write(f"{json.dumps(row)}\n")
            num_rows += 1
    return num_rows


#: Runs a program and writes what the system counted of it, its descendants included. The largest size of a program that is
#: started begins at that of the process that starts it, so a small one does.
_STARTER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(process.pid, 0)
found = {
    "code": os.waitstatus_to_exitcode(status),
    "wall_seconds": time.perf_counter() - start,
    "cpu_seconds": used.ru_utime + used.ru_stime,
    "peak_bytes": used.ru_maxrss * 1024,
}
open(sys.argv[1], "w").write(json.dumps(found))
"""


def measure(arguments: Sequence[str], *, folder: Path, source: Path | None = None) -> dict[str, Any]:
    """`wall_seconds`, `cpu_seconds` and `peak_bytes` of a program that must succeed, by what the system counted.

    Raises:
        RuntimeError: it ended with another code than 0; holds the end of what it said.
    """
    environment = plain_environment(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source.resolve())
    with (
        tempfile.TemporaryDirectory(dir=folder) as cache,
        tempfile.TemporaryFile(dir=folder) as output,
        tempfile.NamedTemporaryFile(dir=folder) as counted,
    ):
        subprocess.run(
            [sys.executable, "-c", _STARTER, counted.name, *arguments],
            cwd=folder,
            env={**environment, "XDG_CACHE_HOME": cache},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
        found: dict[str, Any] = json.loads(Path(counted.name).read_text(encoding="utf-8"))
        code = found.pop("code")
        if code != 0:
            output.seek(0)
            said = output.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}:\n{said}")
    return {key: value if key == "peak_bytes" else round(value, 2) for key, value in found.items()}


def keep(path: Path, found: Measured) -> None:
    """Put a measurement into the file, in place of an earlier one of the same version, command and file."""
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"measured": []}
    same = [asdict(found)[key] for key in ("commit", "command", "file_bytes")]
    others = [
        row for row in values["measured"] if [row[key] for key in ("commit", "command", "file_bytes")] != same
    ]
    values = machine.head(now=datetime.now(UTC)) | {"measured": [*others, asdict(found)]}
    path.write_text(f"{json.dumps(values, indent=1)}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes of the files")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="where the files are made; needs twice their size")
    parser.add_argument("--source", type=Path, help="`src` of another version")
    parser.add_argument("--commit", help="what that version is called; by default this one's commit")
    parser.add_argument("--into", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
