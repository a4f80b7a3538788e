"""The executor for this machine: a worker for each GPU, or as many small ones as a CPU keeps busy.

On a CPU a small model trains faster in several workers with one thread each than in one worker with all threads: on two
cores 1.2 to 1.5 times (docs/log.md). Each holds the base model, so it must be small. How many there are follows from the
machine, the model and the whole suite, never from what is left of it: bits depend on the number of threads, and a
suite that goes on must come to the bits that it would have had.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorastudy.executors.executor import Executor
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.multi_worker import SideBySideExecutor
from lorastudy.lab import base_folder
from lorastudy.suite.experiment import Experiment

THREADS_VARIABLE = "OMP_NUM_THREADS"
GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
MAX_CPU_WORKERS = 8
#: Weight files of a base model up to which several workers may hold it.
MAX_SHARED_BYTES = 1 << 29


def local_executor(experiments: Sequence[Experiment]) -> Executor:
    """Workers for a whole suite on this machine."""
    environments = worker_environments(
        num_experiments=len(experiments),
        num_base_bytes=max((_weight_bytes(name) for name in _base_models(experiments)), default=0),
        num_cores=_num_cores(),
        gpus=_gpus(os.environ, devices=Path("/dev")),
        environment=os.environ,
    )
    if len(environments) == 1:
        return LocalExecutor()
    return SideBySideExecutor(
        environments=environments, hands_over=all(THREADS_VARIABLE in each for each in environments)
    )


def worker_environments(
    *,
    num_experiments: int,
    num_base_bytes: int,
    num_cores: int,
    gpus: Sequence[str],
    environment: Mapping[str, str],
) -> list[dict[str, str]]:
    """What surrounds each worker besides the user's own environment.

    Who sets `OMP_NUM_THREADS` has decided on one worker with so many threads. `num_base_bytes` are of the largest
    base model's weight files.
    """
    if gpus:
        return [{GPUS_VARIABLE: gpu} for gpu in gpus[: max(1, num_experiments)]] if len(gpus) > 1 else [{}]
    if THREADS_VARIABLE in environment or num_base_bytes > MAX_SHARED_BYTES:
        return [{}]
    num_workers = max(1, min(num_cores, num_experiments, MAX_CPU_WORKERS))
    return [{THREADS_VARIABLE: str(num_cores // num_workers)}] * num_workers


def _base_models(experiments: Sequence[Experiment]) -> set[str]:
    return {experiment.settings.base_model for experiment in experiments}


def _weight_bytes(base_model: str) -> int:
    """Bytes of a model folder's weight files; of a model on the hub more than may be shared, whatever it is."""
    folder = base_folder() if base_model == "lab" else Path(base_model)
    if not folder.is_dir():
        return MAX_SHARED_BYTES + 1
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(environment: Mapping[str, str], *, devices: Path) -> list[str]:
    """The NVIDIA devices that workers may use, by the name that CUDA knows them under; nothing of torch is asked."""
    named = environment.get(GPUS_VARIABLE)
    if named is not None:
        return [name for name in named.split(",") if name]
    return [path.name.removeprefix("nvidia") for path in sorted(devices.glob("nvidia[0-9]*"))]
