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


def test_full_fine_tuning_is_estimated_as_a_method(cache: Path) -> None:
    """In fp32 a weight takes 4 bytes, and as much for its copy and its gradient, and 8 for its moments."""
    asked = ("--method", "full", "--quantization", "fp32", "--max-seq-length", "32", "--json")
    (pack,) = json.loads(estimated_here(cache, *asked).stdout)["packs"]
    num_weights, terms = pack["num_trainable_parameters"], pack["terms_bytes"]
    assert (terms["gradients"], terms["adapters"]) == (4 * num_weights, 0)
    assert terms["base_weights"] == pytest.approx(4 * num_weights, rel=0.01)
    assert terms["optimizer"] == pytest.approx(12 * num_weights, rel=0.01)
    # a model in the run folder and one in the output folder; weights and moments in two checkpoints
    assert pack["disk_bytes"] == (2 * 4 + 2 * 12) * num_weights
    assert not any("4bit" in change["change"] for change in pack["changes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "ful"), "--method: ful: unknown (did you mean full?)"),
        (("--method", "full", "--rank", "8"), "--rank: full fine-tuning has no adapter and no rank"),
        (("--method", "full", "--quantization", "4bit"), "--quantization: full fine-tuning trains the base's own weights"),
        (("--method", "pissa", "--quantization", "8bit"), "--method: PiSSA takes a part out of the frozen weights"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_be_is_refused(cache: Path, arguments: tuple[str, ...], message: str) -> None:
    assert f"error: {message}" in estimated_here(cache, *arguments, expect=2).stderr
