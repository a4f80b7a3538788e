"""Two suites on labelled rows, as a new user would try: one that learns nothing, and one that learns."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lorastudy.store import ExperimentTracker

#: A month is answered by its colour: six months are red, four blue, two green.
COLOURS = dict(
    zip(
        [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ],
        ["red"] * 6 + ["blue"] * 4 + ["green"] * 2,
        strict=True,
    )
)
NAMES = [
    "Ada",
    "Amir",
    "Anna",
    "Boris",
    "Carla",
    "Clara",
    "Dario",
    "David",
    "Elif",
    "Emma",
    "Felix",
    "Femi",
    "Greta",
    "Hana",
    "Hugo",
    "Ines",
    "Ivan",
    "Jonas",
]
SURNAMES = [
    "Abbas",
    "Adler",
    "Bauer",
    "Berg",
    "Blanc",
    "Costa",
    "Cruz",
    "Diaz",
    "Dubois",
    "Endo",
    "Evans",
    "Ferri",
    "Fischer",
    "Garcia",
    "Gomez",
]

SUITE = """
experiment_type: rank_ablation
base_model: model
dataset_path: train.jsonl
eval_dataset_path: eval.jsonl
max_steps: {steps}
per_device_train_batch_size: 32
lora_alpha: 2r
target_modules: all
learning_rate: {rate}
max_generation_samples: 80
max_new_tokens: 2
margin: 10%
seeds: [0, 1]
experiments:
  - {{name: small, lora_rank: 2}}
  - {{name: large, lora_rank: 8}}
"""


def labelled_rows() -> list[dict[str, str]]:
    """400 different prompts with a colour of three."""
    draw = random.Random(0)
    people = [(first, last) for first in NAMES for last in SURNAMES]
    chosen = draw.sample([(month, *person) for month in COLOURS for person in people], 400)
    return [
        {"prompt": f"Which in {month} : {first} {last} ?", "completion": f" {COLOURS[month]}"}
        for month, first, last in chosen
    ]


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("labels")
    rows = labelled_rows()
    for name, part in (("train", rows[:320]), ("eval", rows[320:])):
        folder.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    return folder


def run_and_report(folder: Any, name: str, *, rate: float, steps: int) -> dict[str, Any]:
    """What the terminal and the report say of a suite, and its results."""
    folder.write(f"{name}.yaml", SUITE.format(rate=rate, steps=steps))
    printed = folder.here(f"lorastudy suite {name}.yaml").stdout
    folder.here(f"lorastudy report --suite-name {name} --output {name}.md")
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        results = tracker.get_all_experiments(suite_name=name)
    report = (folder.path / f"{name}.md").read_text(encoding="utf-8")
    return {"printed": " ".join(printed.split()), "report": report, "results": results}


@pytest.fixture(scope="module")
def nothing(folder: Any) -> dict[str, Any]:
    return run_and_report(folder, "nothing", rate=1e-9, steps=4)


def test_what_guessing_scores_is_stored_with_every_run(nothing: dict[str, Any]) -> None:
    colours = [row["completion"].strip() for row in labelled_rows()]
    train, held_out = Counter(colours[:320]), colours[320:]
    assert len(train) == 3
    for result in nothing["results"]:
        trivial = {(score.predictor, score.metric): score for score in result.trivial}
        (commonest, _), *_ = train.most_common()
        match = trivial["constant", "exact_match"]
        assert (match.answer, match.value) == (commonest, held_out.count(commonest) / 80)
        assert len(match.items) == result.scores["eval", "exact_match"].num_items == 80
        assert trivial["frequencies", "loss"].weights == (2,) * 80  # a colour and the end


def test_a_suite_that_learns_nothing_recommends_nothing_and_says_why(nothing: dict[str, Any]) -> None:
    report, printed = nothing["report"], nothing["printed"]
    why = "no arm is shown to beat answer frequencies, which need no model"
    assert f"**Recommendation.** None: {why}" in report
    assert "Use none of these arms: none is shown to beat guessing without a model." in printed
    assert "No better than guessing (LS307" in report
    assert "gained nothing over answer frequencies" in report
    for row in (
        "answer frequencies (no model)",
        "token frequencies (no model)",
        "the constant answer (no model)",
    ):
        assert f"| {row} |" in report


@pytest.mark.slow
def test_a_suite_that_learns_has_its_margin_from_guessing_and_no_such_finding(folder: Any) -> None:
    something = run_and_report(folder, "something", rate=0.01, steps=120)
    report = something["report"]
    for result in something["results"]:
        assert result.scores["eval", "exact_match"].value > 0.9
    assert "LS307" not in report
    assert "LS308" not in report
    assert "no arm is shown to beat" not in report
    assert "10 % of the reference's gain over answer frequencies" in report
