"""A worker on a full disk, of which `/dev/full` is one: whoever follows it learns that from its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorastudy.executors.process import WORKER
from lorastudy.protocol import files as disk
from lorastudy.protocol.records import RECORDS_NAME, Pack
from torture import studies

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def test_a_worker_whose_log_is_on_the_full_disk_too_ends_with_the_exit_code_for_that(tmp_path: Path) -> None:
    experiments = tuple(studies.experiments(num_packs=1))
    Pack(id="pack", attempt=1, engine="packed", experiments=experiments).write(tmp_path)
    (tmp_path / RECORDS_NAME).symlink_to(FULL)
    with FULL.open("wb") as log:
        done = subprocess.run(
            [sys.executable, *WORKER, str(tmp_path)],
            env=studies.environment(), stdout=log, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    assert done.returncode == disk.DISK_FAULT_EXIT_CODE
