"""What more than one folder of tests needs."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples at every run, so that a red run is red again; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a cache of its own instead of the user's, for the processes that tests start too.

    The processes of `-n 2` inherit it, so what one of them had counted for a plan the other one finds.
    """
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="lorastudy-tests-", ignore_cleanup_errors=True)
        os.environ["XDG_CACHE_HOME"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put end-to-end walks and long files first, so that `--dist loadfile` ends with short ones on every process."""
    items.sort(key=lambda item: (item.path.parent.name != "e2e", item.get_closest_marker("long") is None))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: tiny models are faster with it, and their sums come in one order on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
