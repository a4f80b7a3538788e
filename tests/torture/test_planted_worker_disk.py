"""The row of a worker's disk faults sees a worker that does not tell, and adapters that are called whole and are not."""

from pathlib import Path

import pytest

from torture.faults import disk, worker_disk
from torture.test_planted_disk import PLANTED

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not disk.compilers(), reason="needs a C compiler for the shim"),
]

NO_MESSAGE = """
from lorastudy import worker
worker.serve_and_tell = lambda serve, arguments: serve(arguments)
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


@pytest.mark.parametrize(
    ("plant", "complaint"), [(NO_MESSAGE, "a traceback"), (HALF_AN_ADAPTER, "another store")]
)
def test_a_planted_bug_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, complaint: str
) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(path=[str(disk.HERE), str(disk.HERE.parent)], plant=plant))
    monkeypatch.setattr(disk, "DRIVER", script)
    folder = tmp_path / "faults"
    folder.mkdir()
    result = worker_disk.run(amount=12, seed=2, folder=folder)
    assert result.num_violations > 0
    assert complaint in result.detail
