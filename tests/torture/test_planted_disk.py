"""The row of disk faults sees work that is done twice, and an error that comes with a traceback."""

import errno
from pathlib import Path

import pytest

from torture.faults import disk

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not disk.compilers(), reason="needs a C compiler for the shim"),
]

PLANTED = """
import sys
sys.path[:0] = {path!r}
import disk_driver
from lorastudy.cli import main as entrance
from lorastudy.store import ExperimentTracker
{plant}
disk_driver.drive()
"""
NO_MESSAGE = "entrance.is_disk_fault = lambda error: False"
#: What the store holds as done is not found again, and is done once more.
FORGOTTEN = """
from lorastudy.running import results
results.not_done = lambda experiments, **_: list(experiments)
"""


#: So many changes before the last one, adapters are published, and at the end nearly all is done.
PUBLISHING, THE_END = range(50, 66, 2), range(2, 10, 2)


@pytest.mark.parametrize(
    ("plant", "changes", "complaint"),
    [(NO_MESSAGE, PUBLISHING, "a traceback"), (FORGOTTEN, THE_END, "were stored as completed")],
    ids=["no message", "forgotten"],
)
def test_a_planted_bug_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, changes: range, complaint: str
) -> None:
    def drawn(_: int, *, num_changes: int, seed: int) -> list[dict[str, int]]:
        return [{"fail_at": num_changes - back, "error": errno.EIO, "stays": 0} for back in changes]

    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(path=[str(disk.HERE), str(disk.HERE.parent)], plant=plant))
    monkeypatch.setattr(disk, "DRIVER", script)
    monkeypatch.setattr(disk, "drawn", drawn)
    folder = tmp_path / "faults"
    folder.mkdir()
    result = disk.run(amount=12, seed=2, folder=folder, until=complaint)
    assert result.num_violations > 0
    assert complaint in result.detail
