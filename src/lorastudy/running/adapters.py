"""Copies of trained adapters in the place where users look for them: `output/<name>/final_model`.

Experiments of two suites may have the same name. The new adapter then goes to `output/<suite>/<name>/final_model`. If
that is taken too, it goes to a folder whose name ends with the experiment's id.

An existing adapter is replaced only if no suite contains its experiment any more (someone edited the suite file) and
its run folder still has a copy. A folder of unknown origin is never touched.

The run folder keeps the original, so an adapter can be published again under another name or in another output folder.
"""

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorastudy.errors import StudyError
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.protocol.run_folder import adapter_path, files_alone, inside
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment

if TYPE_CHECKING:
    from lorastudy.analysis.overview import Analysis
    from lorastudy.recommend.adapter import AdapterChoice


class AdapterPublisher:
    """Copies a suite's adapters to their places. Call `choose_places` first; it picks places that may be written."""

    def __init__(self, *, suite_name: str, tracker: ExperimentTracker, output: Path) -> None:
        self._suite_name = suite_name
        self._tracker = tracker
        self._output = output
        self._chosen: dict[str, Path] = {}
        self.replaced: dict[Path, str] = {}
        """Places where an older adapter was replaced, with the id of the older adapter's experiment."""
        self.lost: dict[str, None] = {}
        """Ids of experiments that were completed earlier and whose adapter no longer exists."""

    def choose_places(self, experiments: Sequence[Experiment]) -> None:
        """Choose a place for the adapter of each experiment.

        Raises:
            StudyError: a place is outside the output folder, or all possible places of an adapter are taken.
        """
        new = [experiment for experiment in experiments if experiment.id not in self._chosen]
        places = {e.id: _places(e.id, e.name, suite_name=self._suite_name, output=self._output) for e in new}
        replaceable = _replaceable(places.values(), tracker=self._tracker)
        taken = set(self._chosen.values())
        for experiment_id, candidates in places.items():
            own = (place for place in candidates if _is_of(place, experiment_id))
            free = (
                place
                for place in candidates
                if place not in taken and _is_free(place, replaceable=replaceable)
            )
            chosen = next(own, None) or next(free, None)
            if chosen is None:
                raise StudyError(
                    f"{candidates[-1]}: is not this suite's, and has the last place left for an adapter; move it away"
                )
            self._chosen[experiment_id] = chosen
            taken.add(chosen)

    def publish_done(self, experiment_ids: Collection[str]) -> None:
        """Publish the adapters of completed experiments that are not at their places yet."""
        wanted = [key for key in experiment_ids if not _is_of(self._chosen[key], key)]
        results = self._tracker.get_results(wanted) if wanted else {}
        for experiment_id, result in results.items():
            if result.status != "completed":
                continue
            adapter = original_folder(result)
            if adapter is None:
                self.lost[experiment_id] = None
            else:
                self.publish(inside(Path(result.run_folder or ""), adapter), experiment_id)

    def publish(self, adapter: Path, experiment_id: str) -> None:
        """Copy an adapter to its place, whole or not at all. The run folder keeps the original."""
        place = self._chosen[experiment_id]
        before = AdapterOrigin.read(place)
        publish(adapter, place)
        if before is not None and before.experiment_id != experiment_id:
            self.replaced[place] = before.experiment_id


def published(experiment: Experiment, *, suite_name: str, output: Path) -> Path | None:
    """The folder of an experiment's published adapter, or None if it is not published."""
    return _published(experiment.id, experiment.name, suite_name=suite_name, output=output)


@dataclass(frozen=True, kw_only=True)
class ChosenAdapter:
    """The adapter to use of an arm, and its folder; None if every copy of it is gone."""

    choice: "AdapterChoice"
    folder: Path | None


def chosen_adapter(
    analysis: "Analysis", arm: str, *, tracker: ExperimentTracker, output: Path
) -> ChosenAdapter | None:
    """The adapter to use of one of the analysis' arms (`recommend.adapter`); None if no run of the arm has one."""
    from lorastudy.recommend.adapter import adapter_to_use  # needs scipy, which a plan does not load

    study = analysis.study
    choice = adapter_to_use(study, study.arm(arm), metric=analysis.primary)
    if choice is None:
        return None
    result = tracker.get_experiment(choice.experiment_id)
    return ChosenAdapter(choice=choice, folder=adapter_folder(result, output=output))


def adapter_folder(result: ExperimentResult, *, output: Path) -> Path | None:
    """The folder of a stored adapter: its published copy, else the original in its run folder; None if both are gone."""
    place = _published(result.experiment_id, result.name, suite_name=result.suite_name, output=output)
    return place or original_folder(result)


def original_folder(result: ExperimentResult) -> Path | None:
    """The adapter's folder in the run folder; None if it is gone, or if the run has no adapter."""
    if result.adapter_path is None:
        return None
    folder = Path(result.run_folder or "") / result.adapter_path
    return folder if folder.is_dir() else None


def _published(experiment_id: str, name: str, *, suite_name: str, output: Path) -> Path | None:
    places = _places(experiment_id, name, suite_name=suite_name, output=output)
    return next((place for place in places if _is_of(place, experiment_id)), None)


@dataclass(frozen=True, kw_only=True)
class AdapterPlaces:
    """The folders of published adapters, apart by whether another adapter occupied the usual place."""

    usual: tuple[Path, ...]
    elsewhere: tuple[Path, ...]


def published_places(experiments: Iterable[Experiment], *, suite_name: str, output: Path) -> AdapterPlaces:
    """The places of those adapters of a suite that are published."""
    found = {
        place: place == _usual_place(experiment.name, output=output)
        for experiment in experiments
        if (place := published(experiment, suite_name=suite_name, output=output)) is not None
    }
    return AdapterPlaces(
        usual=tuple(place for place, is_usual in found.items() if is_usual),
        elsewhere=tuple(place for place, is_usual in found.items() if not is_usual),
    )


def _usual_place(name: str, *, output: Path) -> Path:
    """The adapter's folder, unless another adapter occupies it."""
    return output / name / "final_model"


def publish(adapter: Path, target: Path) -> None:
    """Copy an adapter to `target`, whole or not at all. The run folder keeps the original."""
    fresh, old = target.with_name("final_model.new"), target.with_name("final_model.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _copy(files_alone(adapter), fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _places(experiment_id: str, name: str, *, suite_name: str, output: Path) -> tuple[Path, ...]:
    """The possible places of an experiment's adapter, the usual one first. The last one contains its id."""
    of_suite = output / suite_name
    places = (
        _usual_place(name, output=output),
        of_suite / name / "final_model",
        of_suite / f"{name}-{experiment_id}" / "final_model",
    )
    return tuple(inside(output, place) for place in places)


def _replaceable(places: Collection[tuple[Path, ...]], *, tracker: ExperimentTracker) -> frozenset[str]:
    """Experiments whose adapters in these places may be replaced: no suite has them, and a run folder keeps a copy."""
    origins = (AdapterOrigin.read(place) for candidates in places for place in candidates)
    found = {origin.experiment_id for origin in origins if origin is not None}
    if not found:
        return frozenset()
    orphans = sorted(found - tracker.get_results(sorted(found)).keys())
    return frozenset(
        run.experiment_id
        for run in tracker.get_runs(orphans)
        if (Path(run.run_folder) / adapter_path(run.experiment_id)).is_dir()
    )


def _is_of(place: Path, experiment_id: str) -> bool:
    origin = AdapterOrigin.read(place)
    return origin is not None and origin.experiment_id == experiment_id


def _is_free(place: Path, *, replaceable: Collection[str]) -> bool:
    """Whether the place is empty or holds a replaceable adapter. A folder of unknown origin is not free."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return True
    origin = AdapterOrigin.read(place)
    return origin is not None and origin.experiment_id in replaceable


def _copy(folder: Path, target: Path) -> None:
    """Copy files and folders. `shutil.copytree` would merge all errors into one and lose the errno of a full disk."""
    target.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        fresh = target / path.relative_to(folder)
        if path.is_dir():
            fresh.mkdir()
        else:
            shutil.copyfile(path, fresh)
