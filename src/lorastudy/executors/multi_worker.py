"""Several workers on this machine at once: one per GPU, or as many small ones as a CPU has cores for.

On a CPU a small model trains faster in several workers with one thread each than in one worker with all threads: 1.2 to
1.5 times on two cores (docs/log.md). Every worker holds the base model, so the model must be small. The number of
workers depends on the machine, the model and the whole suite, never on the remaining part of the suite: bits depend on
the number of threads, and a resumed suite must give the same bits.

Every worker (a *lane*) gets its share of the packs beforehand, so that it keeps its base model from pack to pack.
"""

import os
import queue
import re
import threading
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path

from lorastudy.executors.executor import Event, Executor
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.process import THREADS_VARIABLE, WORKER
from lorastudy.lab import base_folder
from lorastudy.protocol.jobs import NEEDS_GPU_VARIABLE
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment

GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"

#: What CUDA takes for a device in `GPUS_VARIABLE`. At the first other name (`-1`, `NoDevFiles`) it stops reading.
_GPU_NAME = re.compile(r"\d+|(GPU|MIG)-.+")

MAX_CPU_WORKERS = 8

#: The largest base model, in bytes of its weight files, that several workers may hold at once.
MAX_SHARED_BYTES = 1 << 29

#: The last item that a lane puts into the queue.
_END = object()


def local_executor(experiments: Sequence[Experiment]) -> Executor:
    """The executor for a whole suite on this machine."""
    gpus = _gpus(os.environ, devices=Path("/dev"))
    environments = worker_environments(
        num_experiments=len(experiments),
        num_base_bytes=max((_weight_bytes(name) for name in _base_models(experiments)), default=0),
        num_cores=_num_cores(),
        gpus=gpus,
        environment=os.environ,
    )
    if len(environments) == 1:
        return LocalExecutor(environment=environments[0] if gpus else {})
    return MultiWorkerExecutor(
        environments=environments, hands_over=all(THREADS_VARIABLE in variables for variables in environments)
    )


def worker_environments(
    *,
    num_experiments: int,
    num_base_bytes: int,
    num_cores: int,
    gpus: Sequence[str],
    environment: Mapping[str, str],
) -> list[dict[str, str]]:
    """The environment variables of each worker, besides the user's own.

    If the user sets `OMP_NUM_THREADS`, there is one worker with that number of threads. `num_base_bytes` is the size of
    the largest base model's weight files. A worker for a GPU fails if torch sees none.
    """
    if len(gpus) == 1:
        return [{NEEDS_GPU_VARIABLE: "1"}]
    if gpus:
        return [{GPUS_VARIABLE: gpu, NEEDS_GPU_VARIABLE: "1"} for gpu in gpus[: max(1, num_experiments)]]
    if THREADS_VARIABLE in environment or num_base_bytes > MAX_SHARED_BYTES:
        return [{}]
    num_workers = max(1, min(num_cores, num_experiments, MAX_CPU_WORKERS))
    return [{THREADS_VARIABLE: str(num_cores // num_workers)}] * num_workers


def _base_models(experiments: Sequence[Experiment]) -> set[str]:
    return {experiment.settings.base_model for experiment in experiments}


def _weight_bytes(base_model: str) -> int:
    """Bytes of a model folder's weight files. A model on the hub counts as too large to share."""
    folder = base_folder() if base_model == "lab" else Path(base_model)
    if not folder.is_dir():
        return MAX_SHARED_BYTES + 1
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(environment: Mapping[str, str], *, devices: Path) -> list[str]:
    """CUDA's names of the NVIDIA devices that workers may use. Works without torch.

    CUDA numbers the devices that it sees from 0, whatever their files are called: in a container with `/dev/nvidia2`
    and `/dev/nvidia5` these are CUDA's 0 and 1.
    """
    named = environment.get(GPUS_VARIABLE)
    if named is not None:
        return list(takewhile(_GPU_NAME.fullmatch, (name.strip() for name in named.split(","))))
    return [str(number) for number, _ in enumerate(devices.glob("nvidia[0-9]*"))]


class MultiWorkerExecutor:
    """One local executor per environment. A folder goes to the one with the least to train."""

    def __init__(
        self,
        *,
        environments: Sequence[Mapping[str, str]],
        worker: Sequence[str] = WORKER,
        hands_over: bool = False,
    ) -> None:
        """`environments` and `worker` as in `LocalExecutor`, `hands_over` as in `Executor`."""
        self._environments, self._worker, self._hands_over = environments, worker, hands_over
        self._lanes = self._fresh_lanes()
        self._is_leaving = False

    @property
    def num_packs_at_once(self) -> int:
        """The number of lanes."""
        return len(self._lanes)

    @property
    def hands_over(self) -> bool:
        """As given to the constructor."""
        return self._hands_over

    @property
    def num_threads(self) -> int | None:
        """That of every lane: `worker_environments` gives all lanes the same."""
        return self._lanes[0].num_threads

    def start_workers(self, base_models: Collection[str]) -> None:
        """Start the worker of every lane."""
        for lane in self._lanes:
            lane.start_workers(base_models)

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders; each lane keeps its own order."""
        events: queue.Queue[object] = queue.Queue()
        threads = [
            threading.Thread(target=_serve, args=(lane, share), kwargs={"events": events}, daemon=True)
            for lane, share in zip(self._lanes, shares(folders, num_lanes=len(self._lanes)), strict=True)
            if share
        ]
        for thread in threads:
            thread.start()
        try:
            yield from _until_all_end(events, num_lanes=len(threads))
        except BaseException:
            self._end(threads)
            raise
        for thread in threads:
            thread.join()

    def leave(self) -> None:
        """Ask all workers to save a checkpoint and stop."""
        self._is_leaving = True
        for lane in self._lanes:
            lane.leave()

    def close(self) -> None:
        """End the workers of all lanes."""
        for lane in self._lanes:
            lane.close()

    def _fresh_lanes(self) -> list[LocalExecutor]:
        return [
            LocalExecutor(worker=self._worker, environment=environment) for environment in self._environments
        ]

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """End all workers at once, and make fresh lanes for the next run."""
        for lane in self._lanes:
            lane.stop()
        for thread in threads:
            thread.join()
        self.close()
        self._lanes = self._fresh_lanes()
        if self._is_leaving:
            self.leave()


def shares(folders: Sequence[Path], *, num_lanes: int) -> list[list[Path]]:
    """The folders of each lane. Assigns the longest folders first, each to the lane with the least training so far."""
    sizes = {folder: _to_train(Pack.read(folder)) for folder in folders}
    lanes: list[list[Path]] = [[] for _ in range(num_lanes)]
    for folder in sorted(folders, key=lambda folder: -sizes[folder]):
        min(lanes, key=lambda lane: sum(sizes[other] for other in lane)).append(folder)
    return [[folder for folder in folders if folder in lane] for lane in lanes]


def _to_train(pack: Pack) -> float:
    """The amount of training in a pack, in units of one arm's whole training."""
    return len(pack.experiments) * ((1.0 if pack.pause_at is None else pack.pause_at) - pack.begun)


def _until_all_end(events: "queue.Queue[object]", *, num_lanes: int) -> Generator[Event]:
    num_open = num_lanes
    while num_open:
        event = events.get()
        if event is _END:
            num_open -= 1
        elif isinstance(event, BaseException):
            raise event
        else:
            yield event  # type: ignore[misc]  # a queue of events, errors and ends


def _serve(lane: LocalExecutor, folders: Sequence[Path], *, events: "queue.Queue[object]") -> None:
    """Put a lane's events into the queue. Put an error there too, and let the reader raise it."""
    try:
        with closing(lane.run(folders)) as served:
            for event in served:
                events.put(event)
    except BaseException as error:  # noqa: BLE001 - a thread cannot raise
        events.put(error)
    events.put(_END)
