"""A worker: folders with a `pack.json` or a `job.json` in, records and adapters out.

    python -m lorastudy.train.worker FOLDER [FOLDER ...]
    python -m lorastudy.train.worker -      folders from standard input, a JSON string a line, as they come

It serves the folders one after another and keeps the base model as long as the next pack needs the same one. It does
not know the store or the suite. `train/train_pack.py` trains a pack, and `train/score_pack.py` scores stored adapters.
This module is the only place that catches all errors, and it keeps their tracebacks.
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
from lorastudy.engine.loading import BaseCache, default_device
from lorastudy.engine.numerics import numerics
from lorastudy.errors import DataError, StudyError
from lorastudy.evaluation.evaluate_adapter import run_job
from lorastudy.protocol.files import DISK_FAULT_EXIT_CODE, exit_code_of, is_disk_fault, replacing
from lorastudy.protocol.jobs import RESULT_NAME, SERVING, folders_to_serve
from lorastudy.protocol.parent_watch import PARENT_VARIABLE, end_with_parent
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME, Incident, Pack, RecordWriter
from lorastudy.protocol.run_folder import attempt_name
from lorastudy.train.outcomes import PackRun, Stop, Stopped
from lorastudy.train.score_pack import score_pack
from lorastudy.train.train_pack import run_pack

#: The exit code of a worker that stopped on request: 128 + SIGTERM, as in a shell.
STOPPED = 143


def main(arguments: Sequence[str]) -> int:
    """Serve the folders. Return 0 even if experiments failed, since the records say so."""
    end_with_parent()
    faulthandler.register(
        signal.SIGUSR1
    )  # `end_hung` asks for a traceback before it kills a worker that hangs
    if PARENT_VARIABLE in os.environ:
        # Ctrl-C reaches both processes; the parent passes it on.
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
    """Run the folder's pack and record an outcome for every experiment, even after an error.

    Raises:
        Stopped: there was a request to stop.
    """
    writer = RecordWriter(folder / RECORDS_NAME)
    run = PackRun(pack=Pack.read(folder), folder=folder, emit=writer.write, sync=writer.sync)
    try:
        settings = run.pack.experiments[0].settings
        with numerics(default_device(), deterministic=settings.deterministic):
            if run.pack.scoring is None:
                run_pack(run, cache=cache, stop=stop)
            else:
                score_pack(run, cache=cache)
    except Stopped:
        run.stop_rest("the worker was asked to stop; what was trained is kept")
        raise
    except StudyError as error:
        run.fail_rest("user", error)
    except Exception as error:  # the worker's edge: every error goes on record
        if is_disk_fault(error):
            raise  # not a failure of any experiment
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
    gc.collect()  # frees what an error's traceback held, and the arms of this pack
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    (folder / DONE_NAME).touch()


def _serve_job(folder: Path) -> None:
    """Write a job's result, or its user error, to `result.json`. Any other error is a crash with its traceback."""
    try:
        with numerics(default_device(), deterministic=False):
            result = run_job(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    except StudyError as error:
        result = {"error": str(error), "is_of_data": isinstance(error, DataError)}
    with replacing(folder / RESULT_NAME) as fresh:  # the control side reads it as soon as the name exists
        fresh.write_text(json.dumps(result), encoding="utf-8")


def as_program(arguments: Sequence[str]) -> NoReturn:
    """Serve the folders and end this process. The exit code tells the result even if the log cannot be written."""
    gc.freeze()  # looking through the libraries for garbage would take 0.2 s after every pack
    code = exit_code_of(main, arguments)
    if code not in {STOPPED, DISK_FAULT_EXIT_CODE}:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    # All output is on disk or cannot be written, so a regular exit could only change the exit code. Tearing down torch
    # would also take seconds on busy cores while the suite waits.
    os._exit(code)


if __name__ == "__main__":
    as_program(sys.argv[1:])
