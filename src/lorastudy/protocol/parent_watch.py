"""A worker lives no longer than the process that started it.

An executor ends its workers, but one that is killed outright cannot. Its workers would train on with nobody
following, and hold the memory that the resumed suite needs.
"""

import os
import threading
import time
from collections.abc import Mapping

PARENT_VARIABLE = "LORASTUDY_PARENT"
SECONDS_BETWEEN_LOOKS = 1.0


def tied_to_this_process(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is to end with this one."""
    return {**environment, PARENT_VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """From now on, end this process when the one that started it is gone; without a word who did, do nothing.

    A system that gives an orphan no other parent (Windows) does not notice.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
