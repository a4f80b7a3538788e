"""Where workers run. `Executor` is the seam; `local`, `multi_worker` and `ray` implement it."""

from lorastudy.executors.executor import Executor, WorkerExit
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.multi_worker import MultiWorkerExecutor, local_executor
from lorastudy.executors.tail import HUNG

__all__ = ["HUNG", "Executor", "LocalExecutor", "MultiWorkerExecutor", "WorkerExit", "local_executor"]
