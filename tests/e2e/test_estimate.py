"""`lorastudy estimate` as a user has it: asked once of a worker, then answered from what is kept, without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from here import run_here

_PROGRAM = """
import sys
from lorastudy.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy"}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def estimate(cache: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "estimate", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def estimated_here(cache: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """The same in the process of the test, for what does not tell of processes."""
    done = run_here(
        ["estimate", *arguments], cwd=cache, environment={"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == expect, done.stderr
    return done


def kept(cache: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in (cache / "lorastudy" / "plans").iterdir()}


def test_the_second_time_no_worker_is_asked_and_no_ml_library_loaded(cache: Path) -> None:
    asked = ("--base-model", "lab", "--quantization", "fp32", "--max-seq-length", "32", "--json")
    first = estimate(cache, *asked)
    answers = kept(cache)
    second = estimate(cache, *asked)
    assert second.stdout == first.stdout
    assert kept(cache) == answers
    assert second.stderr.strip() == ""
    (pack,) = json.loads(second.stdout)["packs"]
    assert pack["peak_bytes"] == sum(pack["terms_bytes"].values())
    # another rank is one more step to count, and nothing else is asked again
    estimated_here(cache, *asked, "--rank", "64")
    fresh = kept(cache).keys() - answers.keys()
    assert [name.partition("-")[0] for name in fresh] == ["footprint"]
    assert {name: kept(cache)[name] for name in answers} == answers


def test_what_does_not_fit_is_told_what_would_make_it_fit(cache: Path) -> None:
    done = estimated_here(
        cache, "--base-model", "lab", "--quantization", "fp32", "--max-seq-length", "32", "--arms", "2",
        "--vram", "1MB",
    )  # fmt: skip
    assert "does not fit 1MB" in done.stdout
    assert "gradient_checkpointing: true" in done.stdout
    assert "The effective batch is the same with each of these." in done.stdout


def test_mistakes_are_told_with_what_to_do(cache: Path, tmp_path: Path) -> None:
    wrong = {
        ("--base-model", str(tmp_path)): "holds no config.json",
        ("--base-model", "nobody/nothing"): "hf download nobody/nothing config.json",
        ("--vram", "plenty"): "give a size such as 8GB",
        ("--quantization", "3bit"): "quantization",
        ("--rank", "0"): "--rank: 0: at least 1",
    }
    for arguments, said in wrong.items():
        assert said in estimated_here(cache, *arguments, expect=2).stderr


def test_timed_steps_are_shown_and_kept_for_the_next_time(cache: Path) -> None:
    asked = ("--base-model", "lab", "--quantization", "fp32", "--max-seq-length", "16", "--batch-size", "2")
    before = estimated_here(cache, *asked)
    assert (
        "time: not known: the store has no such run of this machine; --calibrate times a few steps"
        in before.stdout
    )
    timed = estimated_here(cache, *asked, "--calibrate")
    assert "planning: loading the model and timing a few steps of it" in timed.stderr
    table = timed.stdout.partition("from timed steps of this machine:")[2]
    assert [line.split()[0] for line in table.splitlines()[2:6]] == ["1", "2", "4", "8"]
    answers = kept(cache)
    # what was timed counts for every later question, and nothing is asked again
    later = estimated_here(cache, *asked, "--arms", "4", "--json")
    (pack,) = json.loads(later.stdout)["packs"]
    points = {point["num_arms"]: point for point in pack["timed_steps"]}
    assert list(points) == [1, 2, 4, 8]
    assert [point["num_tokens"] for point in points.values()] == [
        32,
        64,
        128,
        256,
    ]  # 2 rows of 16 tokens an arm
    assert 0 < pack["step_seconds"] < 10 * points[8]["seconds"]
    paces = {name for name in kept(cache) if name.startswith("pace")}
    assert len(paces) == 1
    assert paces <= answers.keys()
