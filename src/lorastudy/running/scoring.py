"""Scoring stored adapters: which packs of them a study still has to score, and from which folders."""

from collections.abc import Collection, Iterable
from pathlib import Path

from lorastudy.errors import StoreError
from lorastudy.planning.missing_scores import MissingScores
from lorastudy.planning.packing import PlannedPack
from lorastudy.protocol.records import PACK_NAME, Pack
from lorastudy.protocol.scoring import Scoring, StoredAdapter
from lorastudy.running.adapters import original_folder, published
from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment


def scoring_packs(
    missing: Iterable[MissingScores], *, suite_name: str, output: Path | None, tried: Collection[str]
) -> tuple[list[PlannedPack], list[str]]:
    """The packs to score, and the ids of experiments whose adapter no longer exists.

    `output` is where adapters are published; a copy there serves if the run folder is gone. `tried` are experiments
    that this call has scored already, or failed to.
    """
    packs, gone = [], []
    for group in missing:
        adapters = {}
        for experiment in group.experiments:
            result = group.results[experiment.id]
            folder = _adapter(experiment, result, suite_name=suite_name, output=output)
            if folder is None:
                gone.append(experiment.id)
            elif experiment.id not in tried:
                assert result.attempt is not None
                adapters[experiment.id] = StoredAdapter(attempt=result.attempt, folder=str(folder))
        if adapters:
            packs.append(
                PlannedPack(
                    experiments=tuple(e for e in group.experiments if e.id in adapters),
                    scoring=Scoring(metrics=group.metrics, adapters=adapters),
                )
            )
    return packs, gone


def _adapter(
    experiment: Experiment, result: ExperimentResult, *, suite_name: str, output: Path | None
) -> Path | None:
    """The folder of the adapter in its run folder, else of its published copy; None if both are gone."""
    own = original_folder(result)
    if own is not None or output is None:
        return own
    return published(experiment, suite_name=suite_name, output=output)


def take_scores_left(tracker: ExperimentTracker, *, runs: Path) -> list[str]:
    """Store the scores that workers wrote before their runner was killed; return what is damaged.

    Scores after a damaged line are not stored. They are measured again if a suite asks for them.

    Raises:
        StoreError: the store cannot be written.
    """
    damaged = []
    for file in sorted(runs.glob(f"score-*/attempt-*/{PACK_NAME}")):
        try:
            Pack.read(file.parent)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            damaged.append(f"{file}: damaged: {error}")
            continue
        try:
            rebuilding.replay(tracker, file.parent)
        except StoreError as error:
            if not isinstance(
                error.__cause__, ValueError
            ):  # the store's own error, not one of reading the records
                raise
            damaged.append(str(error))
    return damaged
