"""A worker: folders with a `pack.json` or a `job.json` in, records and adapters out.

    python -m lorastudy.train.worker FOLDER [FOLDER ...]
    python -m lorastudy.train.worker -      folders from standard input, a JSON string a line, as they come

It serves the folders one after another and keeps the base model between them while it is the same. It knows
nothing of the store or the suite; it speaks through `records.jsonl` alone. What becomes of a pack is told in
`train/train_pack.py`. This is the one place that catches whatever goes wrong, and it keeps the traceback.
"""

import faulthandler
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseCache
from lorastudy.errors import DataError, StudyError
from lorastudy.evaluation.evaluate_adapter import run_job
from lorastudy.protocol.files import DISK_FAULT_EXIT_CODE, exit_code_of, is_disk_fault, replacing
from lorastudy.protocol.jobs import RESULT_NAME, SERVING, folders_to_serve
from lorastudy.protocol.parent_watch import PARENT_VARIABLE, end_with_parent
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME, Incident, Pack, RecordWriter
from lorastudy.protocol.run_folder import attempt_name
from lorastudy.train.outcomes import PackRun
from lorastudy.train.stopping import Stop, Stopped
from lorastudy.train.train_pack import run_pack

#: The exit code of a worker that left because it was asked to (128 + SIGTERM, as the shell has it).
STOPPED = 143


def main(arguments: Sequence[str]) -> int:
    """Serve the folders; exit 0 even when experiments failed, since that is on record."""
    end_with_parent()
    faulthandler.register(signal.SIGUSR1)  # whoever ends a worker that hangs asks first where it does
    if PARENT_VARIABLE in os.environ:
        # Ctrl-C goes to both; the one that started this passes it on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cache, stop = BaseCache(), Stop()
    stop.listen()
    try:
        for folder in folders_to_serve(arguments):
            print(f"{SERVING}{attempt_name(folder)}", flush=True)
            if (folder / "job.json").exists():
                _serve_job(folder)
            else:
                serve_pack(folder, cache=cache, stop=stop)
    except Stopped:
        return STOPPED
    return 0


def serve_pack(folder: Path, *, cache: BaseCache, stop: Stop) -> None:
    """Do what the folder asks for; whatever comes of it is on record afterwards.

    Raises:
        Stopped: the worker was asked to leave.
    """
    writer = RecordWriter(folder / RECORDS_NAME)
    run = PackRun(pack=Pack.read(folder), folder=folder, emit=writer.write, sync=writer.sync)
    try:
        run_pack(run, cache=cache, stop=stop)
    except Stopped:
        run.stop_rest("the worker was asked to leave; what was trained is kept")
        raise
    except StudyError as error:
        run.fail_rest("user", error)
    except Exception as error:  # the worker's edge: whatever it was, it goes on record
        if is_disk_fault(error):
            raise  # the surroundings' failure, and no experiment's
        if is_out_of_memory(error):
            num_arms = len(run.pack.experiments)
            message = f"a pack of {num_arms} ran out of memory: {str(error) or type(error).__name__}"
            run.emit(Incident(kind="out_of_memory", message=message, step=run.step))
            run.fail_rest("out_of_memory", error)
        else:
            run.fail_rest("error", error)
        if torch.cuda.is_available() and not isinstance(error, torch.OutOfMemoryError):
            raise  # a CUDA fault outlives its exception: the next folder gets a fresh worker
    finally:
        writer.close()
    gc.collect()  # what an error held on to, and the arms of a pack that is over
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    (folder / DONE_NAME).touch()


def _serve_job(folder: Path) -> None:
    """A job's result or its user error goes to `result.json`; anything else is a crash with its traceback."""
    try:
        result = run_job(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    except StudyError as error:
        result = {"error": str(error), "is_of_data": isinstance(error, DataError)}
    with replacing(folder / RESULT_NAME) as fresh:  # the control side waits for the name, then reads it whole
        fresh.write_text(json.dumps(result), encoding="utf-8")


def as_program(arguments: Sequence[str]) -> NoReturn:
    """Serve the folders and end this process; the exit code says how that went even where the log cannot."""
    code = exit_code_of(main, arguments)
    if code not in {STOPPED, DISK_FAULT_EXIT_CODE}:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    # All is on disk, or nothing more gets there: what Python would still flush could but change the exit code. And
    # taking torch apart takes seconds where the cores are busy, and somebody waits.
    os._exit(code)


if __name__ == "__main__":
    as_program(sys.argv[1:])
