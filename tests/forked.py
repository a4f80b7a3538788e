"""A suite whose workers are forks of a process that has torch and the base model already: a kill costs a fraction of a second.

What runs in the fork is the worker's own `serve_pack`; only the start of the process is another one. The suite is run
once in this process before, so that no fork imports or sets up anything anew.
"""

import gc
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.engine import packed
from lorastudy.engine.loading import BaseCache, default_device
from lorastudy.executors import WorkerExit
from lorastudy.executors.executor import Event
from lorastudy.executors.tail import RunFolderTail
from lorastudy.running.study import StudyOutcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import suite_from_values
from lorastudy.train import checkpointing, worker
from lorastudy.train import train_pack as life
from lorastudy.train.outcomes import Stop, Stopped
from planned import options_in, run_experiments

SUITE = "torture"
NUM_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class TinySuite:
    """Four arms on a model of a few kilobytes: two ranks, one of them with dropout, two seeds, one of unequal length."""

    values: dict[str, Any]
    experiments: tuple[Experiment, ...]
    cache: BaseCache


def tiny_values(folder: Path, **settings: Any) -> dict[str, Any]:
    """Write the model and the rows; what a suite file about them says. Every second step is saved."""
    model = tiny.save_base(folder / "model", hidden_size=32)
    rows = [
        {"prompt": f"{row.prompt_text} ", "completion": row.reference}
        for row in tiny.make_rows(24, longest=10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "base_model": str(model), "dataset_path": str(folder / "rows.jsonl"), "eval_fraction": 0.25,
        "max_steps": NUM_STEPS, "per_device_train_batch_size": 4, "max_seq_length": 32, "learning_rate": 5e-3,
        "lora_alpha": "2r", "quantization": "fp32", "max_generation_samples": 2, "max_new_tokens": 3,
        "checkpoint_steps": 2, "seeds": [0, 1], "data_seed": 0,  # one order of the rows, so one pack
        "experiments": [{"name": "r2", "lora_rank": 2}, {"name": "r4", "lora_rank": 4, "lora_dropout": 0.2}],
    }  # fmt: skip
    return values | settings


def tiny_suite(folder: Path, *, engine: str = "packed", **settings: Any) -> TinySuite:
    """The suite of `tiny_values`, expanded, with its model loaded."""
    values = tiny_values(folder, engine=engine, **settings)
    suite = suite_from_values(values, where="torture")
    experiments = expand(
        suite, fingerprint_dataset=dataset_fingerprint, fingerprint_base=base_model_fingerprint
    )
    cache = BaseCache()
    cache.get(experiments[0].settings, device=default_device())
    tiny_suite = TinySuite(values=values, experiments=tuple(experiments), cache=cache)
    warm_up(tiny_suite, folder / "warm")
    return tiny_suite


def warm_up(suite: TinySuite, folder: Path) -> None:
    """Run the suite in this process; what comes of it is nobody's business."""
    folder.mkdir()
    with patched():
        outcome = run(suite, folder, executor=InThisProcess(cache=suite.cache))
    assert len(outcome.completed) == len(suite.experiments), outcome
    shutil.rmtree(folder)


@contextmanager
def patched() -> Iterator[None]:
    """Within, no arm is measured alone and no engine is tried out first: neither is part of what is tested.

    Checkpoints come as often as the suite says, whatever they cost.
    """
    with (
        patch.object(life, "profile_arms", lambda *_, **__: iter(())),
        patch.object(packed, "check_supported", lambda *_, **__: None),
        patch.object(checkpointing, "MAX_CHECKPOINT_SHARE", math.inf),
    ):
        yield


@dataclass(kw_only=True)
class InThisProcess:
    """Serves the folders without another process."""

    cache: BaseCache

    num_packs_at_once = 1
    hands_over = False
    num_threads = None

    def leave(self) -> None:
        """Nothing: nobody asks."""

    def close(self) -> None:
        """Nothing: there is no other process."""

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        for folder in folders:
            worker.serve_pack(folder, cache=self.cache, stop=Stop())
            yield from RunFolderTail(folder).new_events(lambda: WorkerExit(returncode=0))


@dataclass(kw_only=True)
class ForkedExecutor:
    """One fork for each folder. `in_worker` runs in it before the pack does; `pids` are those of the forks so far."""

    cache: BaseCache
    in_worker: Callable[[Path], None] = lambda _: None
    on_fork: Callable[[int], None] = lambda _: None
    pids: list[int] = field(default_factory=list)

    num_packs_at_once = 1
    hands_over = False
    num_threads = None

    def leave(self) -> None:
        """Ask the worker to leave."""
        if self.pids:
            os.kill(self.pids[-1], signal.SIGTERM)

    def close(self) -> None:
        """Nothing: each fork ends with its folder."""

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        for folder in folders:
            pid = os.fork()
            if pid == 0:
                _serve_and_exit(folder, cache=self.cache, in_worker=self.in_worker)
            self.pids.append(pid)
            self.on_fork(pid)
            yield from _follow(folder, pid)


class TwoLanes(ForkedExecutor):
    """Says that it has two workers, and serves what they would one after another."""

    num_packs_at_once = 2
    hands_over = True


def _serve_and_exit(folder: Path, *, cache: BaseCache, in_worker: Callable[[Path], None]) -> None:
    code = 1
    try:
        gc.freeze()  # as in `forks`: a worker collects garbage after each pack, and this process holds much more
        os.closerange(3, 1024)  # a started process inherits none of the runner's files and locks either
        with patched():
            in_worker(folder)
            stop = Stop()
            stop.listen()
            worker.serve_pack(folder, cache=cache, stop=stop)
        code = 0
    except Stopped:
        code = worker.STOPPED
    finally:
        os._exit(code)


def _follow(folder: Path, pid: int) -> Generator[Event]:
    tail, status = RunFolderTail(folder), []

    def end_of_worker() -> WorkerExit | None:
        if not status:
            done, code = os.waitpid(pid, os.WNOHANG)
            if not done:
                return None
            status.append(os.waitstatus_to_exitcode(code))
        return WorkerExit(returncode=status[0])

    try:
        while tail.exit is None:
            yield from tail.new_events(end_of_worker)
            time.sleep(0.002)
    finally:
        if not status:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run(
    suite: TinySuite, folder: Path, *, executor: Any = None, is_leaving: Callable[[], bool] = lambda: False,
    on_event: Callable[..., None] = lambda *_: None, rungs: tuple[float, ...] = (),
) -> StudyOutcome:  # fmt: skip
    """Run what is missing of the suite in this folder, as a command does."""
    with ExperimentTracker(folder / "experiments.db", writable=True) as tracker:
        return run_experiments(
            suite.experiments,
            suite_name=SUITE,
            tracker=tracker,
            executor=executor or ForkedExecutor(cache=suite.cache),
            options=options_in(folder, continue_on_error=True),
            rungs=rungs,
            on_event=on_event,
            is_leaving=is_leaving,
        )


def everything(folder: Path, *, database: str = "experiments.db") -> dict[str, Any]:
    """All that must not depend on what befell a suite, by experiment: status, steps, scores, answers, adapter."""
    found = {}
    with ExperimentTracker(folder / database) as tracker:
        for result in tracker.get_all_experiments():
            scores = {
                key: tracker.get_items(result.experiment_id, split=key[0], metric=key[1])
                for key in result.scores
            }
            adapter = folder / "output" / result.name / "final_model" / "adapter_model.safetensors"
            found[result.name] = {
                "status": result.status,
                "steps": tracker.get_steps(result.experiment_id),
                "values": {key: score.value for key, score in result.scores.items()},
                "items": scores,
                "answers": tracker.get_generations(result.experiment_id),
                "adapter": adapter.read_bytes() if adapter.exists() else None,
            }
    return found
