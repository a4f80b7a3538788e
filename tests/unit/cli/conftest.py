"""Commands of these tests run in the process of the test, and so do the questions of their plans."""

from collections.abc import Iterator

import pytest

from here import plans_answered_here


@pytest.fixture(autouse=True)
def plans_are_counted_in_this_process() -> Iterator[None]:
    """Answer what a plan asks of a worker in this process. `tests/e2e` has plans asked of real workers."""
    with plans_answered_here():
        yield
