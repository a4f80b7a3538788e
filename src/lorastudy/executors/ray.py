"""Workers on the nodes of a Ray cluster: one task per folder, as many at a time as the cluster has room for.

The only file that imports ray (`pip install 'lorastudy[ray]'`). A task starts the same worker process as on one
machine; the run folders, the data and this package are expected at the same paths on all nodes (a shared file
system). Records do not travel through Ray: the driver follows the folders, so what is stored does not depend
on where it came from.

A task is never retried by Ray. A node that is cut off may go on writing into its folder; the next attempt has
another folder and a higher number, so nothing of that is taken.
"""

import os
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorastudy.errors import StudyError, without_tracebacks
from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.process import (
    FAREWELL_SECONDS,
    LOG_NAME,
    WORKER,
    base_model_of,
    log_tail,
    worker_process,
)
from lorastudy.executors.tail import POLL_SECONDS, HangTimeout, RunFolderTail

#: The exit code of a worker whose node or task was lost, so that nobody knows its own.
LOST = 255

CONNECT_SECONDS = 5.0

#: Read by Ray when it is imported. Ray pings an idle connection every five minutes and waits two for the answer;
#: until then the task of a node that was cut off counts as running. A cluster that is up already has its own.
RAY_ENVIRONMENT = {
    "RAY_grpc_keepalive_time_ms": "10000",
    "RAY_grpc_keepalive_timeout_ms": "5000",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without GPU leaves CUDA_VISIBLE_DEVICES alone
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayExecutor:
    """Folders as tasks of a Ray cluster; several packs may be in flight."""

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: float = 1.0,
        num_gpus: float | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        """Nothing is connected before the first `run`.

        Args:
            address: of the cluster; without it Ray looks for one (`RAY_ADDRESS`, then this machine) and starts
                one on this machine if there is none.
            num_cpus: for each task. Ray sets a task's number of threads to it, and bits depend on that.
            num_gpus: for each task; a share such as 0.5 puts two packs on one GPU. By default 1 where the
                cluster has any.
            worker: what the interpreter is told to run; the folder follows.

        Raises:
            StudyError: Ray is not installed.
        """
        self._address = address
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._worker = tuple(worker)
        self._is_leaving = False
        self._ray = _import_ray()

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders, side by side as far as there is room.

        Raises:
            StudyError: the cluster cannot be reached, or none of its nodes is large enough for a task.
        """
        self._connect()
        options = self._task_options()
        tasks = {folder: self._start(folder, options=options) for folder in folders}
        tails = {folder: RunFolderTail(folder) for folder in folders}
        hangs: dict[Path, str] = {}
        is_cancelled = False
        try:
            while tails:
                for folder, tail in list(tails.items()):
                    end_of_worker = partial(self._end_of_worker, tasks[folder], folder=folder, hangs=hangs)
                    yield from tail.new_events(end_of_worker)
                    if tail.exit is not None:
                        del tails[folder]
                    elif not (folder / LOG_NAME).exists():
                        tail.hang_timeout = HangTimeout()  # it waits for its turn
                    elif folder not in hangs:
                        self._end_if_hung(tasks[folder], tail, folder=folder, hangs=hangs)
                if self._is_leaving and not is_cancelled:
                    is_cancelled = True
                    for task in tasks.values():
                        self._ray.cancel(task)
                time.sleep(POLL_SECONDS)
        finally:
            self._end(list(tasks.values()))

    @property
    def num_packs_at_once(self) -> int:
        """One: how large the cluster is, and will be, is its own business; `max_arms_per_pack` cuts a suite for it."""
        return 1

    @property
    def hands_over(self) -> bool:
        """Whether two packs run side by side is the cluster's business."""
        return False

    def leave(self) -> None:
        """Cancel the tasks; each asks its worker to save what it is at and to leave."""
        self._is_leaving = True

    def close(self) -> None:
        """Nothing: a task's worker ends with its task."""

    def _connect(self) -> None:
        """Once; Ray itself lets go when the program ends."""
        if self._ray.is_initialized():
            return
        self._check_address()
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudyError(f"--ray-address: {self._address or 'auto'}: no Ray cluster: {error}") from error

    def _check_address(self) -> None:
        """Ray itself tries a cluster that does not answer for more than ten minutes."""
        address = self._address or ""
        host, colon, port = address.rpartition(":")
        if not colon or "://" in address:
            return  # `auto`, `local` or a Ray client's address, which Ray looks at in its own ways
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise StudyError(f"--ray-address: {address}: no Ray cluster answers there: {error}") from error

    def _task_options(self) -> dict[str, Any]:
        """What a task asks for; a task larger than every node would wait for ever.

        Raises:
            StudyError: it is.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        num_gpus = self._num_gpus
        if num_gpus is None:
            num_gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        if not any(node.get("CPU", 0) >= self._num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
            there = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise StudyError(
                f"a task asks for {self._num_cpus:g} CPUs and {num_gpus:g} GPUs, and no node of the Ray cluster has "
                f"both (nodes: {there or 'none'}); ask for less with --ray-num-cpus and --ray-num-gpus"
            )
        return {"num_cpus": self._num_cpus, "num_gpus": num_gpus, "max_retries": 0}

    def _start(self, folder: Path, *, options: dict[str, Any]) -> Any:
        task = self._ray.remote(serve).options(**options, name=f"lorastudy {folder}")
        return task.remote(str(folder.resolve()), cwd=str(Path.cwd()), worker=self._worker)

    def _end_if_hung(self, task: Any, tail: RunFolderTail, *, folder: Path, hangs: dict[Path, str]) -> None:
        """By force, and its worker ends with it: the process that started it is gone."""
        problem = tail.hang_timeout.problem()
        if problem is not None:
            hangs[folder] = problem
            self._ray.cancel(task, force=True)

    def _end_of_worker(self, task: Any, *, folder: Path, hangs: Mapping[Path, str]) -> WorkerExit | None:
        ended, _ = self._ray.wait([task], timeout=0)
        if not ended:
            return None
        try:
            return WorkerExit(returncode=self._ray.get(task), message=log_tail(folder))
        except self._ray.exceptions.RayError as error:
            text = hangs.get(folder, without_tracebacks(str(error)))
            return WorkerExit(returncode=LOST, message=text)

    def _end(self, tasks: list[Any]) -> None:
        """Cancel what has not ended: waiting tasks never start, running ones end their worker first."""
        if not tasks:
            return
        for task in tasks:
            self._ray.cancel(task)
        _, lingering = self._ray.wait(tasks, num_returns=len(tasks), timeout=2 * FAREWELL_SECONDS)
        for task in lingering:
            self._ray.cancel(task, force=True)


def serve(folder: str, *, cwd: str, worker: Sequence[str]) -> int:
    """Serve one folder in a process of this node; return its exit code. This is the task.

    It looks after the process instead of waiting for it, because Ray's cancellation takes effect only between
    two statements of Python.
    """
    path = Path(folder)
    base_models = [base_model_of(path)]
    with worker_process([path], base_models=base_models, worker=worker, cwd=Path(cwd)) as process:
        while (returncode := process.poll()) is None:
            time.sleep(POLL_SECONDS)
    return returncode


def _import_ray() -> Any:
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise StudyError("Ray is not installed: pip install 'lorastudy[ray]'") from error
    return ray
