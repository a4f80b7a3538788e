r"""Do two versions of the program train the same adapters and store the same numbers? For changes that must change nothing.

    python -m benchmarks.same_study run BEFORE.json                      in the checkout of before
    python -m benchmarks.same_study run AFTER.json                       in that of now, on the same machine
    python -m benchmarks.same_study compare BEFORE.json AFTER.json       exit code 1 where they differ

Four small studies on the lab run through the command line: a plain one, one that races, one that looks for its learning
rates, and one that is interrupted and resumed. Kept of each experiment are a hash of its adapter's weights, its scores, how it
ended and in how many steps. Sizes of packs are pinned, since the bits of an arm depend on the other arms of its pack.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorastudy.store import ExperimentTracker

_SHARED = """
base_model: lab
dataset_path: lab:facts
eval_dataset_path: lab:facts_eval
max_seq_length: 16
per_device_train_batch_size: 8
quantization: fp32
max_eval_samples: 24
max_generation_samples: 4
max_arms_per_pack: 4
checkpoint_steps: 5
"""
STUDIES = {
    "plain": "max_steps: 12\nseeds: [0, 1]\nlearning_rate: 0.01\nfactors:\n  lora_rank: [1, 2, 8]\n",
    "racing": (
        "max_steps: 24\nseeds: [0, 1, 2, 3]\nracing: true\nmargin: 0.01\nfactors:\n  lora_rank: [1, 8]\n"
        "  learning_rate: [0.00001, 0.02]\n"
    ),
    "search": "max_steps: 12\nseeds: [0, 1]\nlearning_rate: auto\nfactors:\n  lora_rank: [1, 8]\n",
    "interrupted": "max_steps: 60\nseeds: [0]\nlearning_rate: 0.01\nfactors:\n  lora_rank: [1, 2, 8]\n",
}
#: Of the interrupted study, how long it may take to save its first checkpoint.
_PATIENCE_SECONDS = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the studies and keep what they came to, or compare what was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_study")
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("into", type=Path)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    chosen = parser.parse_args(arguments)
    if chosen.verb == "compare":
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in chosen.files)
        return _compared(before, after)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: _studied(name, Path(folder, name)) for name in STUDIES}
    chosen.into.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def _studied(name: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / "suite.yaml").write_text(f"suite_name: {name}\n{_SHARED}{STUDIES[name]}", encoding="utf-8")
    if name == "interrupted":
        _interrupt(folder)
    _command(folder).wait()
    with ExperimentTracker(folder / "results" / "experiments.db") as tracker:
        results = tracker.get_all_experiments()
    return {
        f"{one.name} seed {one.seed}": {
            "id": one.experiment_id,
            "status": one.status,
            "steps": one.num_steps,
            "scores": {"/".join(key): score.value for key, score in sorted(one.scores.items())},
            "adapter": _digest(folder, one.run_folder, one.adapter_path),
        }
        for one in results
    }


def _interrupt(folder: Path) -> None:
    """Begin the study, and ask it to leave once a checkpoint lies there."""
    process = _command(folder)
    until = time.monotonic() + _PATIENCE_SECONDS
    while not list(folder.glob("results/runs/*/*/checkpoints/*")):
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit("the study ended before it had saved a checkpoint")
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()


def _command(folder: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lorastudy.cli.main", "suite", "suite.yaml"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _digest(folder: Path, run_folder: str | None, adapter: str | None) -> str | None:
    if run_folder is None or adapter is None:
        return None
    path = folder / run_folder / adapter / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compared(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs; 1 if anything does."""
    wrong = []
    for study in sorted(before.keys() | after.keys()):
        one, other = before.get(study, {}), after.get(study, {})
        wrong += [f"{study}: {name} is in one of them only" for name in sorted(one.keys() ^ other.keys())]
        for name in sorted(one.keys() & other.keys()):
            wrong += [
                f"{study}: {name}: {key}: {one[name][key]} before, {other[name][key]} after"
                for key in one[name]
                if one[name][key] != other[name][key]
            ]
    num_adapters = sum(entry["adapter"] is not None for study in after.values() for entry in study.values())
    print("\n".join(wrong) if wrong else f"equal: {len(after)} studies, {num_adapters} adapters to the bit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
