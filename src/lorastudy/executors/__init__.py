"""Where workers run. `Executor` is the seam; `local` starts them on this machine."""

from lorastudy.executors.executor import Executor, WorkerExit
from lorastudy.executors.local import LocalExecutor
from lorastudy.executors.patience import HUNG

__all__ = ["HUNG", "Executor", "LocalExecutor", "WorkerExit"]
