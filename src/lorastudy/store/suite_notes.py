"""A note on a suite beside its run folders: the facts of a suite that run folders lack.

It is written whenever a suite begins. A store can then be rebuilt from the runs folder alone, with the suite's name,
its order, and the experiments that have not run yet.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lorastudy.protocol.files import replacing
from lorastudy.store.tracker import ExperimentTracker
from lorastudy.store.views import ExperimentResult, StatedQuestion, StoredDecision
from lorastudy.suite.experiment import Experiment, tagged_hash
from lorastudy.suite.question import Question

FORMAT_VERSION = 1
_FOLDER = "suites"


def keep(tracker: ExperimentTracker, suite_name: str, *, runs: Path) -> Path:
    """Write the store's facts about a suite into `<runs>/suites`; return the file."""
    summary = next(suite for suite in tracker.get_suites() if suite.suite_name == suite_name)
    body = {
        "format": FORMAT_VERSION,
        "suite_name": suite_name,
        "description": summary.description,
        "created_at": summary.created_at,
        "questions": [
            {
                "question": stated.question.to_json(),
                "stated_at": stated.stated_at,
                "num_completed": stated.num_completed,
            }
            for stated in summary.questions
        ],
        "design": tracker.get_designs().get(suite_name),
        "decisions": [vars(decision) for decision in tracker.get_decisions(suite_name)],
        "experiments": [_plain(result) for result in tracker.get_all_experiments(suite_name=suite_name)],
    }
    # The name is a hash, because a suite's name may hold any character.
    file = runs / _FOLDER / f"{tagged_hash('suite', suite_name)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as fresh:
        fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return file


def register_all(tracker: ExperimentTracker, *, runs: Path) -> Iterator[str]:
    """Register every suite with a note, the oldest first; yield the problem of each unreadable note."""
    notes = []
    for file in sorted((runs / _FOLDER).glob("*.json")):
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            members = [Experiment.from_json(values) for values in body["experiments"]]
            stated = [
                StatedQuestion(**{**values, "question": Question.from_json(values["question"])})
                for values in body.get("questions", ())
            ]
            about = (body["suite_name"], body["description"], body.get("design"))
            decided = [StoredDecision(**values) for values in body.get("decisions", ())]
            notes.append((body["created_at"], about, members, (stated, decided)))
        except (ValueError, KeyError, TypeError) as error:
            yield f"{file}: not a suite's note: {error}"
    for created_at, about, members, (questions, decisions) in sorted(
        notes, key=lambda note: (note[0], note[1][0])
    ):
        suite_name, description, design = about
        with tracker.at(datetime.fromisoformat(created_at)):
            tracker.register(suite_name, members, description=description)
        if design is not None:
            tracker.keep_design(suite_name, design)
        for question in questions:
            with tracker.at(datetime.fromisoformat(question.stated_at)):
                tracker.state_question(suite_name, question.question, num_completed=question.num_completed)
        for decision in decisions:
            tracker.keep_decision(suite_name, decision)


def _plain(result: ExperimentResult) -> dict[str, object]:
    """The experiment in the form that `Experiment.from_json` reads."""
    names = ("name", "arm", "experiment_type", "seed", "settings", "sources")
    return {name: getattr(result, name) for name in names}
