"""Where each arm was best during training: the sentences, the figure in both drawings, and no section without scores."""

import contextlib
import random
from dataclasses import replace

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.report.figures.data import held_out_figure
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.figures.static import save_figure
from lorastudy.report.write import write_report
from lorastudy.stats.held_out_curves import held_out_curves
from lorastudy.stats.study import split_studies
from lorastudy.store.views import ScoreValue

#: The mean loss after steps 50, 100, ..., 250: one rises after 100, one falls to its end, one stays.
MEANS = {
    "r64": (2.0, 1.5, 1.55, 1.6, 1.65),
    "r4": (2.2, 2.0, 1.9, 1.8, 1.7),
    "r16": (2.0, 1.6, 1.6, 1.6, 1.6),
}


@pytest.fixture
def results(make_result):
    def results(*, num_seeds=6, **more):
        draw = random.Random(3)
        made = []
        for arm, means in MEANS.items():
            for seed in range(num_seeds):
                losses = [mean + 0.1 * seed + draw.gauss(0, 0.003) for mean in means]
                result = make_result(
                    arm,
                    seed,
                    scores={("eval", "loss"): losses[-1]},
                    settings={"lora_rank": int(arm[1:])},
                    num_planned_steps=250,
                    **more.get(arm, {}),
                )
                for step, loss in zip((50, 100, 150, 200), losses, strict=False):
                    score = ScoreValue(value=loss, unit="nats", version=1, num_items=9, step=step)
                    result.scores[f"eval_after_{step}", "loss"] = score
                made.append(result)
        return made

    return results


@pytest.fixture
def report(results, make_tracker, tmp_path):
    def report(**options):
        with contextlib.chdir(tmp_path):
            write_report(make_tracker(results(**options)))
        return (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

    return report


def test_it_says_where_each_arm_was_best_and_tells_rank_from_time(report):
    text = report()
    assert "## Held-out loss during training" in text
    # (1.65 + 0.25) / (1.5 + 0.25) - 1 = 8.6 %, the seeds adding 0.25 in the mean; the noise makes it 8.4 %
    assert "**r=64** was best at step 100 of 250; after that its loss rose by 8.4 %." in text
    assert "**r=4** was still improving at its end, step 250." in text
    assert "Whether it rose after that cannot be told from the noise of 6 seeds." in text
    assert "r=64 trained too long for its best result; of r=4 and r=16 that is not shown." in text
    assert "set `select_checkpoint: best`." in text
    assert "They decided nothing: every verdict is about the end of training." in text


def test_one_seed_claims_nothing(report):
    text = report(num_seeds=1)
    assert "**r=64** was lowest at step 100 of 250. One seed cannot tell that from noise." in text
    assert "trained too long" not in text


def test_an_arm_that_was_never_better_than_the_base_did_not_only_train_too_long(
    results, make_tracker, tmp_path
):
    made = results()
    for one in made:
        base = 1.7 + 0.1 * one.seed
        one.scores["eval_before", "loss"] = ScoreValue(value=base, unit="nats", version=1, num_items=9)
    made = [
        replace(one, scores={key: replace(score, value=score.value + 1) if "before" not in key[0] else score for key, score in one.scores.items()})
        if one.arm == "r64"
        else one
        for one in made
    ]  # fmt: skip
    with contextlib.chdir(tmp_path):
        write_report(make_tracker(made))
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "its loss rose by 5.4 %. At no point was it better than the base model (1.950)." in text
    assert "trained too long" not in text


def test_what_was_kept_and_where_it_stopped_is_said(report):
    text = report(r64={"selected_step": 100}, r16={"num_steps": 200})
    assert "The adapter of step 100 was kept." in text
    assert (
        "the adapter with the lowest validation loss of each run, where the suite selects it, not of its last step"
        in text
    )
    assert "It stopped early: after step 200 of 250." in text
    assert "no verdict rests on them" in text


def test_without_scores_on_the_way_there_is_no_section(written):
    folder, _ = written
    assert "Held-out loss during training" not in (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_both_drawings_mark_the_lowest_point_of_every_arm(results, tmp_path):
    (study,) = split_studies(results())
    figure = held_out_figure(analyse(study), held_out_curves(study))
    marked = {row.arm: row.point.step for row in figure.curves if row.is_marked}
    assert list(marked) == ["r4", "r16", "r64"]
    assert (marked["r4"], marked["r64"]) == (250, 100)
    assert figure.y_label == "Held-out loss (nats per token)"
    (spec,) = vega_lite_specs(figure)
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["area", "line", "circle", "circle"]
    assert spec["layer"][2]["transform"] == [{"filter": "datum.is_marked"}]
    assert [path.suffix for path in save_figure(figure, tmp_path)] == [".png", ".svg"]
