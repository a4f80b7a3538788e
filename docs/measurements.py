"""Measurements that the documents show: taken from a results store, kept small, read back.

    python docs/measurements.py results/experiments.db --suite demo --items --into docs/examples/demo.json

A file is `ExperimentTracker.export_to_json` of one suite, with what all experiments have in common written once
and without what no page shows, which keeps it small. With `--items` it also has the compared scores item by item, those of
guessing too, and
is analysed as the suite's report is: by what was asked beforehand, for new seeds and new items.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorastudy.analysis.overview import Analysis, analyse, criterion_of, stored_items
from lorastudy.protocol.records import (
    ArmProfile,
    DataSummary,
    Environment,
    MemoryPrediction,
    PackProfile,
    TrivialScore,
)
from lorastudy.stats.study import Study, split_studies
from lorastudy.stats.twoway import ItemScores, ItemTable
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult, ScoreValue
from lorastudy.suite.question import Question

#: Where and when it ran, and what failures left: nothing that a page shows.
LEFT_OUT = ("run_folder", "adapter_path", "started_at", "finished_at", "traceback")

#: Significant digits of an item's value: what pages show of means has fewer, and the file is a third as large.
_DIGITS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a measurements file from a results store."""
    parser = argparse.ArgumentParser(prog="python docs/measurements.py")
    parser.add_argument("database", help="a results store")
    parser.add_argument("--suite", required=True, help="which of its suites")
    parser.add_argument("--into", type=Path, required=True, help="the file to write")
    parser.add_argument("--items", action="store_true", help="with the compared scores item by item")
    chosen = parser.parse_args(arguments)
    take(chosen.database, suite_name=chosen.suite, into=chosen.into, with_items=chosen.items)
    return 0


def take(database: str, *, suite_name: str, into: Path, with_items: bool = False) -> None:
    """Write one suite's results as a measurements file."""
    with tempfile.TemporaryDirectory() as folder, ExperimentTracker(database) as tracker:
        exported = Path(folder) / "export.json"
        tracker.export_to_json(exported)
        body = json.loads(exported.read_text(encoding="utf-8"))
    experiments = [_slim(each) for each in body["experiments"] if each["suite_name"] == suite_name]
    if not experiments:
        raise SystemExit(f"{database} has no suite {suite_name!r}")
    unfinished = sum(each["status"] in {"pending", "running", "stopped"} for each in experiments)
    if unfinished:
        raise SystemExit(
            f"{unfinished} of {len(experiments)} experiments of {suite_name} have not come to an end"
        )
    packs = {each["pack_id"]: each.pop("pack_profile") for each in experiments if each["pack_id"]}
    shared, rests = factored(experiments)
    lines = ",\n".join(f"  {json.dumps(rest, ensure_ascii=False)}" for rest in rests)
    suite = next(each for each in body["suites"] if each["suite_name"] == suite_name)
    questions = [stated["question"] for stated in suite["questions"][-1:]]
    about = {
        "lorastudy": body["lorastudy"],
        "question": questions[0] if questions else None,
        "packs": packs,
        "shared": shared,
    }
    if with_items:
        about["items"] = _items(database, suite_name=suite_name, question=questions[0] if questions else None)
        about["trivial"] = _trivial(database, suite_name=suite_name)
    head = json.dumps(about, indent=1, ensure_ascii=False)
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(f'{head[:-2]},\n "experiments": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"wrote {into}: {len(experiments)} experiments")


def factored(values: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all mappings have in common, at any depth, and what is left of each; `merged` is the inverse."""
    shared: dict[str, Any] = {}
    rests: list[dict[str, Any]] = [{} for _ in values]
    for key in dict.fromkeys(key for value in values for key in value):
        column = [value[key] for value in values if key in value]
        if len(column) == len(values) and all(one == column[0] for one in column):
            shared[key] = column[0]
        elif len(column) == len(values) and all(isinstance(one, dict) for one in column):
            common, parts = factored(column)
            if common:
                shared[key] = common
            for rest, part in zip(rests, parts, strict=True):
                rest[key] = part
        else:
            for rest, value in zip(rests, values, strict=True):
                if key in value:
                    rest[key] = value[key]
    return shared, rests


def merged(shared: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of which `factored` took the two parts."""
    result = {**shared, **rest}
    for key in shared.keys() & rest.keys():
        result[key] = merged(shared[key], rest[key])
    return result


def results_of(path: Path) -> list[ExperimentResult]:
    """The experiments of a measurements file, as the store would give them."""
    body = json.loads(path.read_text(encoding="utf-8"))
    packs = body["packs"]
    values = [merged(body["shared"], rest) for rest in body["experiments"]]
    stored = body.get("trivial", {})
    trivial = {pack: stored[scores] if isinstance(scores, str) else scores for pack, scores in stored.items()}
    return [
        _result(
            each
            | {
                "pack_profile": packs.get(each["pack_id"]),
                "trivial": trivial.get(each["pack_id"], each.get("trivial", ())),
            }
        )
        for each in values
    ]


def analysis_of(path: Path, *, with_labels: bool = False) -> Analysis:
    """The one study of a measurements file, analysed as the report does; its arms under their names, or under their labels."""
    body = json.loads(path.read_text(encoding="utf-8"))
    study, stated = _asked(results_of(path), body.get("question"))
    study = study.labelled() if with_labels else study
    if "items" not in body:
        return analyse(study)
    return analyse(study, criterion=criterion_of(study, stated), items=_item_table(body["items"]))


def _asked(
    results: Sequence[ExperimentResult], question: dict[str, Any] | None
) -> tuple[Study, Question | None]:
    """The one study of these results as its suite asks for it, and what it asks."""
    (study,) = split_studies(results)
    if question is None:
        return study, None
    stated = Question.from_json(question)
    return replace(study, tuning_seeds=frozenset(stated.tuning_seeds)), stated


def _items(database: str, *, suite_name: str, question: dict[str, Any] | None) -> list[dict[str, Any]]:
    """By metric: the items' weights, and the values of each run that is compared."""
    with ExperimentTracker(database) as tracker:
        study, stated = _asked(tracker.get_all_experiments(suite_name=suite_name), question)
        compared = {run.experiment_id for run in study.completed if run.seed not in study.tuning_seeds}
        table = stored_items(tracker, study, metrics=criterion_of(study, stated).metrics_by_item)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for (experiment_id, split, metric), scores in table.items():
        if experiment_id in compared:
            entry = found.setdefault(
                (split, metric), {"split": split, "metric": metric, "weights": scores.weights, "values": {}}
            )
            assert entry["weights"] == scores.weights, "runs that are compared were scored on the same rows"
            entry["values"][experiment_id] = [float(f"{value:.{_DIGITS}g}") for value in scores.values]
    return list(found.values())


def _trivial(database: str, *, suite_name: str) -> dict[str, Any]:
    """By pack what guessing scores, item by item; for a pack with the scores of an earlier one the id of that."""
    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments(suite_name=suite_name)
    found: dict[str, Any] = {}
    for run in results:
        if run.pack_id is None or run.pack_id in found:
            continue
        scores = [
            asdict(score) | {"items": [float(f"{value:.{_DIGITS}g}") for value in score.items]}
            for score in run.trivial
        ]
        found[run.pack_id] = next((pack for pack, other in found.items() if other == scores), scores)
    return found


def _trivial_score(values: Mapping[str, Any]) -> TrivialScore:
    """Without `--items` its value alone."""
    weights = values.get("weights")
    rest = {key: value for key, value in values.items() if key != "num_items"}
    return TrivialScore(
        **{
            **rest,
            "items": tuple(values.get("items", ())),
            "weights": None if weights is None else tuple(weights),
        }
    )


def _item_table(items: Sequence[Mapping[str, Any]]) -> ItemTable:
    return {
        (experiment_id, each["split"], each["metric"]): ItemScores(
            values=tuple(values), weights=None if each["weights"] is None else tuple(each["weights"])
        )
        for each in items
        for experiment_id, values in each["values"].items()
    }


def _slim(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Without what no page shows, and with scores and data by their names, so that what is equal is written once."""
    scores: dict[str, dict[str, Any]] = {}
    for score in experiment["scores"]:
        value = {key: part for key, part in score.items() if key not in {"split", "metric"}}
        scores.setdefault(score["split"], {})[score["metric"]] = value
    data = {each["split"]: {k: v for k, v in each.items() if k != "split"} for each in experiment["data"]}
    kept = {key: value for key, value in experiment.items() if key not in LEFT_OUT}
    return kept | {"scores": scores, "data": data}


def _result(values: Mapping[str, Any]) -> ExperimentResult:
    scores = {
        (split, metric): ScoreValue(**score)
        for split, metrics in values["scores"].items()
        for metric, score in metrics.items()
    }
    kinds = {
        "profile": ArmProfile,
        "pack_profile": PackProfile,
        "prediction": MemoryPrediction,
        "environment": Environment,
    }
    parts = {key: kind(**values[key]) if values.get(key) else None for key, kind in kinds.items()}
    data = tuple(DataSummary.from_json({"split": split, **each}) for split, each in values["data"].items())
    trivial = tuple(map(_trivial_score, values["trivial"]))
    return ExperimentResult(**{**values, **parts, "scores": scores, "data": data, "trivial": trivial})


if __name__ == "__main__":
    sys.exit(main())
