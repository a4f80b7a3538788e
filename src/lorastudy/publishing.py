"""Trained adapters at the place where users look for them: `output/<name>/final_model`.

The run folder keeps its own copy, so what was published can be published again: under another name, for another folder.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lorastudy.jobs import AdapterOrigin
from lorastudy.spec.containment import files_alone, inside
from lorastudy.spec.experiment import Experiment
from lorastudy.tracker import ExperimentTracker


def publish_done(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    tracker: ExperimentTracker,
    output: Path,
) -> tuple[str, ...]:
    """Publish adapters of experiments that were done before, perhaps under another name or for another folder.

    Returns the ids of those whose adapter is nowhere to be found.
    """
    missing_ids = {experiment.id for experiment in missing}
    targets: dict[str, Path] = {}
    for experiment in experiments:
        target = output / experiment.name / "final_model"
        origin = AdapterOrigin.read(target)
        if experiment.id not in missing_ids and (origin is None or origin.experiment_id != experiment.id):
            targets[experiment.id] = target
    results = tracker.get_results(list(targets)) if targets else {}
    gone = []
    for experiment_id, target in targets.items():
        done = results[experiment_id]
        adapter = Path(done.run_folder or "") / (done.adapter_path or "")
        if done.adapter_path is not None and adapter.is_dir():
            publish(inside(Path(done.run_folder or ""), adapter), target)
        else:
            gone.append(experiment_id)
    return tuple(gone)


def publish(adapter: Path, target: Path) -> None:
    """Copy an adapter to `output/<name>/final_model`, whole or not at all. The run folder keeps its own."""
    fresh, old = target.with_name("final_model.new"), target.with_name("final_model.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _copy(files_alone(adapter), fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _copy(folder: Path, target: Path) -> None:
    """Copy files and folders. `shutil.copytree` gathers errors into one that does not say any more that the disk is full."""
    target.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        fresh = target / path.relative_to(folder)
        if path.is_dir():
            fresh.mkdir()
        else:
            shutil.copyfile(path, fresh)
