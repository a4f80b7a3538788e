"""The row of a worker's disk faults sees a worker that does not tell, and adapters that are called whole and are not."""

import errno
from pathlib import Path

import pytest

from torture.faults import disk, worker_disk
from torture.test_planted_disk import PLANTED

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not disk.compilers(), reason="needs a C compiler for the shim"),
]

#: A worker that does not tell what it died of.
NO_MESSAGE = """
from lorastudy.train import worker
worker.exit_code_of = lambda serve, arguments: serve(arguments)
"""
#: An adapter that could not be written counts as written.
HALF_AN_ADAPTER = """
from lorastudy.engine.packed import PackedEngine
save = PackedEngine.save_adapter
def careless(*given):
    try:
        return save(*given)
    except OSError:
        return 0
PackedEngine.save_adapter = careless
"""


#: So many changes before the last one, adapters are written.
SAVING = (15, 16, 17, 26)
A_FULL_DISK = {"error": errno.ENOSPC, "stays": 1}
ONE_ERROR = {"error": errno.EIO, "stays": 0}


@pytest.mark.parametrize(
    ("plant", "fault", "complaint"),
    [
        pytest.param(
            NO_MESSAGE, A_FULL_DISK, "a message without the fault", id="no message", marks=pytest.mark.slow
        ),
        pytest.param(
            HALF_AN_ADAPTER, ONE_ERROR, "another store", id="half an adapter", marks=pytest.mark.slow
        ),
    ],
)
def test_a_planted_bug_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, fault: dict[str, int], complaint: str
) -> None:
    def drawn(_: int, *, num_changes: int, seed: int) -> list[dict[str, int]]:
        return [{"fail_at": num_changes - back, **fault} for back in SAVING]

    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(path=[str(disk.HERE), str(disk.HERE.parent)], plant=plant))
    monkeypatch.setattr(disk, "DRIVER", script)
    monkeypatch.setattr(disk, "drawn", drawn)
    folder = tmp_path / "faults"
    folder.mkdir()
    result = worker_disk.run(amount=12, seed=2, folder=folder, until=complaint)
    assert result.num_violations > 0
    assert complaint in result.detail
