"""A worker: folders with a `pack.json` or a `job.json` in, records and adapters out.

    python -m lorastudy.worker FOLDER [FOLDER ...]

It serves the folders one after another and keeps the base model between them while it is the same. It knows
nothing of the store or the suite; it speaks through `records.jsonl` alone. What becomes of a pack is told in
`training/life.py`. This is the one place that catches whatever goes wrong, and it keeps the traceback.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lorastudy.errors import StudyError
from lorastudy.evaluation.checkpoint import run_job
from lorastudy.lifeline import end_with_parent
from lorastudy.records import DONE_NAME, RECORDS_NAME, Pack, RecordWriter
from lorastudy.training.base_cache import BaseCache
from lorastudy.training.life import run_pack
from lorastudy.training.outcomes import PackRun


def main(arguments: Sequence[str]) -> int:
    """Serve the folders; exit 0 even when experiments failed, since that is on record."""
    end_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cache = BaseCache()
    for folder in map(Path, arguments):
        if (folder / "job.json").exists():
            _serve_job(folder)
        else:
            _serve_pack(folder, cache)
    return 0


def _serve_pack(folder: Path, cache: BaseCache) -> None:
    writer = RecordWriter(folder / RECORDS_NAME)
    run = PackRun(pack=Pack.read(folder), folder=folder, emit=writer.write)
    try:
        run_pack(run, cache=cache)
    except StudyError as error:
        run.fail_rest("user", error)
    except torch.OutOfMemoryError as error:
        run.fail_rest("out_of_memory", error)
    except Exception as error:  # the worker's edge: whatever it was, it goes on record
        run.fail_rest("out_of_memory" if _is_cpu_allocation_failure(error) else "error", error)
        if torch.cuda.is_available():
            raise  # a CUDA fault outlives its exception: the next folder gets a fresh worker
    finally:
        writer.close()
    (folder / DONE_NAME).touch()


def _serve_job(folder: Path) -> None:
    """A job's result or its user error goes to `result.json`; anything else is a crash with its traceback."""
    try:
        result = run_job(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    except StudyError as error:
        result = {"error": str(error)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _is_cpu_allocation_failure(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
