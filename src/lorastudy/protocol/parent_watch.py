"""Ends a worker when the process that started it is gone.

An executor ends its workers, unless it is killed itself. Without this module its workers would then continue to train
and hold the memory that the resumed suite needs.
"""

import os
import threading
import time
from collections.abc import Mapping

PARENT_VARIABLE = "LORASTUDY_PARENT"
SECONDS_BETWEEN_LOOKS = 1.0


def tied_to_this_process(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables for a child process that must end with this one."""
    return {**environment, PARENT_VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """From now on, end this process when its parent is gone. Without `PARENT_VARIABLE`, do nothing.

    Windows assigns no new parent to an orphan, so the end of the parent is not detected there.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
