"""A store to run studies into."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorastudy.store import ExperimentTracker


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[ExperimentTracker]:
    with ExperimentTracker(tmp_path / "experiments.db", writable=True) as tracker:
        yield tracker
