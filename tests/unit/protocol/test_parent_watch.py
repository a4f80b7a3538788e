"""A worker whose executor was killed outright does not go on alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

#: Starts a process that is tied to itself and would sleep for a minute; says its id; is then killed.
_PARENT = """
import os, subprocess, sys, time
from lorastudy.protocol.parent_watch import tied_to_this_process

child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=tied_to_this_process(os.environ))
print(child.pid, flush=True)
time.sleep(60)
"""

_CHILD = """
import sys, time
from pathlib import Path
from lorastudy.protocol.parent_watch import end_with_parent

end_with_parent()
Path({mark!r}).touch()
time.sleep(60)
Path({mark!r}).unlink()
"""


def wait_for(condition: object, *, seconds: float = 30.0) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD.format(mark=str(mark))], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(mark.exists)
        assert is_running(child)
        parent.kill()
    wait_for(lambda: not is_running(child))
    assert mark.exists(), "it ended before its time"


def test_without_a_word_about_a_parent_it_is_on_its_own(tmp_path: Path) -> None:
    program = "from lorastudy.protocol.parent_watch import end_with_parent; import threading; end_with_parent(); print(threading.active_count())"
    environment = {name: value for name, value in os.environ.items() if name != "LORASTUDY_PARENT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
