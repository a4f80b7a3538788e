"""The way of a suite through the package does not grow unseen."""

import pytest

from benchmarks import walk

#: At 637fb3c 109 modules led to the first worker and 88 to the page.
MAX_TO_WORKER, MAX_TO_PAGE = 80, 66


@pytest.mark.slow
def test_a_suite_passes_no_more_modules_than_this() -> None:
    to_worker, to_page = walk.passed()
    assert {"planning/study_plan.py", "running/study.py", "running/phases.py"} <= to_worker
    assert len(to_worker) <= MAX_TO_WORKER
    assert "report/write.py" in to_page
    assert len(to_page) <= MAX_TO_PAGE
