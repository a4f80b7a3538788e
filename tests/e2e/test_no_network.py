"""A small suite from file to report where there is no network at all: not even this machine's own loopback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

#: A user's own network, with one interface that is down. Unprivileged where the kernel allows it.
WITHOUT_NETWORK = ("unshare", "--map-root-user", "--net")
SUITE = """\
suite_name: s
base_model: model
dataset_path: people.csv
quantization: fp32
max_steps: 2
max_generation_samples: 2
max_new_tokens: 2
experiments:
  - lora_rank: 1
  - lora_rank: 2
"""


def reason_against() -> str | None:
    """Why no such network can be made here."""
    if shutil.which(WITHOUT_NETWORK[0]) is None:
        return "unshare is not installed"
    done = subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no network namespace can be made here: {done.stderr.strip()}"


pytestmark = pytest.mark.skipif(reason_against() is not None, reason=str(reason_against()))


def run(folder: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Nobody has said that there is no network: whatever would ask for it must find that out, or not ask.
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    }
    return subprocess.run(
        [*WITHOUT_NETWORK, sys.executable, *arguments],
        cwd=folder.path, env={**kept, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("no_network")
    folder.write("s.yaml", SUITE)
    return folder


def test_there_is_no_network(folder: Any) -> None:
    program = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)"
    done = run(folder, "-c", program)
    assert "Network is unreachable" in done.stderr


#: Imported at the start of every Python process, the workers included: a socket that is no Unix one ends it.
WATCH = """\
import os, socket
_real = socket.socket.__init__
def _watched(self, family=-1, *rest, **options):
    if family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            import traceback
            file.write("".join(traceback.format_stack()) + "---\\n")
    _real(self, family, *rest, **options)
socket.socket.__init__ = _watched
"""


def test_a_suite_its_report_and_an_evaluation_need_none_and_do_not_ask_for_one(folder: Any) -> None:
    folder.write("sitecustomize.py", WATCH)
    seen = folder.path / "sockets"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder.path), os.environ.get("PYTHONPATH", "")]),
        "SOCKETS_SEEN": str(seen),
    }
    run(folder, "-c", "import socket; socket.socket(socket.AF_INET)", **environment)
    assert seen.exists(), "the watch does not see what it should"
    seen.unlink()
    for arguments in (
        ("suite", "s.yaml"),
        ("report",),
        ("export", "--format", "csv"),
        (
            "evaluate",
            "--checkpoint",
            "output/custom_r1/final_model",
            "--benchmark-only",
            "--max-new-tokens",
            "2",
        ),
    ):
        done = run(folder, "-m", "lorastudy.cli.main", *arguments, **environment)
        assert done.returncode == 0, done.stderr
    assert (folder.path / "RESULTS.html").is_file()
    assert not seen.exists(), seen.read_text()
