"""Where workers run. `Executor` is the seam; `local` starts them on this machine, `machine` says how many."""

from lorastudy.executors.executor import Executor, WorkerExit
from lorastudy.executors.hang_timeout import HUNG
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.machine import local_executor
from lorastudy.executors.multi_worker import SideBySideExecutor

__all__ = ["HUNG", "Executor", "LocalExecutor", "SideBySideExecutor", "WorkerExit", "local_executor"]
