"""Where workers run. `Executor` is the seam; `local` starts them on this machine."""

from lorastudy.executors.executor import Executor, WorkerExit
from lorastudy.executors.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "WorkerExit"]
