"""Workers on the nodes of a Ray cluster: one task per folder, as many at a time as the cluster can run.

This is the only file that imports ray (`pip install 'lorastudy[ray]'`). A task starts the same worker process as on one
machine. The run folders, the data and this package must be at the same paths on all nodes (a shared file system).
Records do not travel through Ray: the driver reads them from the folders, as on one machine.

Ray never retries a task. A disconnected node may go on writing into its folder. The next attempt has another folder
with a higher number, so these late records are ignored.
"""

import os
import socket
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorastudy.errors import StudyError, without_tracebacks
from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.process import (
    FAREWELL_SECONDS,
    THREADS_VARIABLE,
    WORKER,
    base_model_of,
    log_tail,
    worker_process,
)
from lorastudy.executors.tail import POLL_SECONDS, HangTimeout, RunFolderTail
from lorastudy.protocol.jobs import LOG_NAME, NEEDS_GPU_VARIABLE

#: Stands for the exit code of a worker whose node or task was lost, since its own is unknown.
LOST = 255

CONNECT_SECONDS = 5.0

#: Ray reads these when it is imported. By default it pings an idle connection every five minutes and waits two minutes
#: for the answer. Until then the task of a disconnected node counts as running. A running cluster keeps its own values.
RAY_ENVIRONMENT = {
    "RAY_grpc_keepalive_time_ms": "10000",
    "RAY_grpc_keepalive_timeout_ms": "5000",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without GPU leaves CUDA_VISIBLE_DEVICES alone
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayExecutor:
    """Runs folders as tasks of a Ray cluster. Several packs may run at once."""

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: float = 1.0,
        num_gpus: float | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        """The first `run` connects to the cluster.

        Args:
            address: of the cluster. Without it Ray looks for a cluster (`RAY_ADDRESS`, then this machine) and starts
                one on this machine if there is none.
            num_cpus: CPUs per task. Ray sets a task's number of threads to it, and bits depend on that.
            num_gpus: GPUs per task. A share such as 0.5 puts two packs on one GPU. The default is 1 if the cluster
                has GPUs, else 0.
            worker: arguments of the Python interpreter. The folder follows them.

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
        """Serve the folders, as many at once as the cluster can run.

        Raises:
            StudyError: the cluster cannot be reached, or no node is large enough for a task.
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
        """One, since the size of the cluster may change. Set `max_arms_per_pack` to cut a suite into more packs."""
        return 1

    @property
    def hands_over(self) -> bool:
        """False, since it is unknown whether two packs run at the same time."""
        return False

    @property
    def num_threads(self) -> int | None:
        """The whole CPUs of a task, and at least one. Ray keeps `OMP_NUM_THREADS` if it is set: then None."""
        return None if THREADS_VARIABLE in os.environ else max(1, int(self._num_cpus))

    def start_workers(self, base_models: Collection[str]) -> None:
        """Do nothing: a worker starts with its task."""

    def leave(self) -> None:
        """Cancel the tasks. Every task asks its worker to save a checkpoint and stop."""
        self._is_leaving = True

    def close(self) -> None:
        """Do nothing: a worker ends with its task."""

    def _connect(self) -> None:
        """Connect to the cluster once. Ray disconnects when the program ends."""
        if self._ray.is_initialized():
            return
        self._check_address()
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudyError(f"--ray-address: {self._address or 'auto'}: no Ray cluster: {error}") from error

    def _check_address(self) -> None:
        """Fail within seconds if the cluster does not answer. Ray itself would try for more than ten minutes."""
        address = self._address or ""
        host, colon, port = address.rpartition(":")
        if not colon or "://" in address:
            return  # `auto`, `local` or a Ray client's address: Ray checks these itself
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise StudyError(f"--ray-address: {address}: no Ray cluster answers there: {error}") from error

    def _task_options(self) -> dict[str, Any]:
        """The resources of a task. A task larger than every node would wait for ever.

        Raises:
            StudyError: no node is large enough for a task.
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
        return task.remote(
            str(folder.resolve()),
            cwd=str(Path.cwd()),
            worker=self._worker,
            environment={NEEDS_GPU_VARIABLE: "1"} if options["num_gpus"] else {},
        )

    def _end_if_hung(self, task: Any, tail: RunFolderTail, *, folder: Path, hangs: dict[Path, str]) -> None:
        """Cancel a task by force if it hangs. Its worker then ends too, since its parent process is gone."""
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
        """Cancel the tasks that have not ended. Waiting tasks never start; running tasks end their worker first."""
        if not tasks:
            return
        for task in tasks:
            self._ray.cancel(task)
        _, lingering = self._ray.wait(tasks, num_returns=len(tasks), timeout=2 * FAREWELL_SECONDS)
        for task in lingering:
            self._ray.cancel(task, force=True)


def serve(folder: str, *, cwd: str, worker: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code of a worker that serves one folder on this node. This function is the Ray task.

    It polls the process instead of blocking on it, because Ray's cancellation takes effect only between two Python
    statements.
    """
    path = Path(folder)
    base_models = [base_model_of(path)]
    with worker_process(
        [path], base_models=base_models, worker=worker, environment=environment, cwd=Path(cwd)
    ) as process:
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
