"""What more than one folder of tests needs."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples at every run, so that a red run is red again; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


#: Linux's file system in memory, and the bytes that a session may need of it.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a folder that goes with it: for `tmp_path`, and for a cache instead of the user's.

    The processes of `-n 2` and those that tests start inherit it, so what one of them had counted for a plan the other
    one finds. It lies in memory if possible: stores and run folders are synchronised thousands of times, which takes
    milliseconds each on a disk. `--basetemp FOLDER` has the folders of tests elsewhere, and keeps them.
    """
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(
            prefix="tests-", dir=MEMORY if memory_serves() else None, ignore_cleanup_errors=True
        )
        os.environ |= {"PYTEST_DEBUG_TEMPROOT": folder.name, "XDG_CACHE_HOME": f"{folder.name}/cache"}
        config.add_cleanup(folder.cleanup)


def memory_serves() -> bool:
    """Whether there is room in memory for files, and programs may lie there."""
    if not os.access(MEMORY, os.W_OK):
        return False
    state = os.statvfs(MEMORY)
    return state.f_bavail * state.f_frsize >= MEMORY_BYTES and not state.f_flag & os.ST_NOEXEC


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put end-to-end walks and long files first, so that `--dist loadfile` ends with short ones on every process."""
    items.sort(key=lambda item: (item.path.parent.name != "e2e", item.get_closest_marker("long") is None))


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: libraries and collected tests, which take it half a second to go through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: tiny models are faster with it, and their sums come in one order on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
