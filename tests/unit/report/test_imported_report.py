"""The report of imported results: what it claims, and that it crowns nobody."""

import re

import pytest

from lorastudy.errors import StudyError
from lorastudy.report.write import write_report
from lorastudy.store.views import ImportedResult, ImportedScore


class Imported:
    """A store that holds imported results."""

    def __init__(self, results):
        self.results = results

    def get_imported(self, suite_name):
        return [result for result in self.results if result.suite_name == suite_name]

    def get_all_experiments(self, suite_name=None):
        return []


def result(arm, right, seed=0, *, items=1319, **changes):
    score = ImportedScore(
        metric="test accuracy", value=right / items, unit="share", lower_is_better=False, num_items=items
    )
    values = {
        "suite_name": "public", "arm": arm, "seed": seed, "settings": {"method": arm.split("/")[0], "learning_rate": 1e-4},
        "sources": {"environment": "torch 2.9"}, "scores": (score,), "costs": {"peak_memory_bytes": 2.0**30},
        "tool": "peft method_comparison", "file": f"{arm}.json".replace("/", "--"), "file_sha256": "ab" * 32,
        "location": arm, "imported_at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return ImportedResult(**(values | changes))


@pytest.fixture
def text_of(tmp_path):
    def text_of(results, **options):
        path, page, *images = write_report(
            Imported(results), suite_name="public", output=tmp_path / "R.md", **options
        )
        assert all(image.stat().st_size > 0 for image in images)
        assert "<table" in page.read_text(encoding="utf-8")
        return path.read_text(encoding="utf-8")

    return text_of


@pytest.fixture
def text(text_of):
    # 694 against 677, 648 and 500 of 1319 is .013, .035 and .147 of a standard error of .0194; Tukey's limit is 2.57 of these
    return text_of([result("lily/x", 694), result("hira/x", 677), result("oft/x", 648), result("ia3/x", 500)])


def test_it_says_what_cannot_be_told_and_names_no_single_winner(text):
    assert (
        "**Answer.** No single configuration comes out best. 3 of 4 arms may be the best by the noise of the items alone"
        in text
    )
    assert "(in the order of their names): hira/x, lily/x and oft/x." in text
    prose = text.partition("## Results")[0]
    for sentence in re.split(r"(?<=[.:;])\s", prose):
        if "lily/x" in sentence and "LS" not in prose[: prose.index(sentence)].rpartition("\n")[2]:
            assert "oft/x" in sentence or "ia3/x" in sentence, f"names one alone: {sentence}"


def test_the_numbers_of_the_table(text):
    header = next(line for line in text.splitlines() if line.startswith("| Arm "))
    row = next(line for line in text.splitlines() if line.startswith("| oft/x"))
    cells = dict(
        zip([c.strip() for c in header.split("|")], [c.strip() for c in row.split("|")], strict=True)
    )
    # 648 / 1319 = .4913; Wilson [.464, .518]; .5262 - .4913 + 2.062 (Dunnett, three others) * .01944 = .075
    assert cells["Test accuracy"] == "0.491"
    assert cells["95 % interval"] == "[0.464, 0.518]"
    assert cells["Below the best by at most"] == "0.075"
    assert cells["May be the best"] == "yes"
    assert cells["Peak memory"] == "1.00 GiB"


def test_what_is_not_known_is_said(text):
    for part in (
        "no arm has enough seeds to estimate the noise between seeds",
        "it was picked for being highest",
        "What 4 of 4 arms can do at a better learning rate: it was not varied.",
        "LS401 Too few seeds for a verdict",
    ):
        assert part in text


def test_the_source_is_said(text):
    assert "from peft method\\_comparison, imported on 2026-01-02" in text or (
        "from peft method_comparison, imported on 2026-01-02" in text
    )
    assert "They were not measured here" in text
    row = next(line for line in text.splitlines() if line.startswith("| lily--x.json"))
    assert "abababababab" in row
    assert "torch 2.9: 4 results" in text


def test_even_a_clear_lead_is_one_adapter_s_and_not_a_configuration_s(text_of):
    text = text_of([result("a/x", 1000), result("b/x", 500), result("c/x", 400)])
    assert "One adapter scored higher than all others by more than the noise of the items" in text
    assert "these results cannot say" in text
    answer = re.search(r"\*\*Answer\.\*\*(.+)", text)[1]
    assert "a/x" not in answer


def test_several_seeds_have_paired_comparisons(text_of):
    def loss(arm, seed, value):
        score = ImportedScore(metric="loss", value=value, unit="nats", lower_is_better=True)
        return result(arm, 1, seed, scores=(score,), location=f"{arm}{seed}")

    results = [loss("a/x", s, 2.0 + 0.01 * s) for s in range(6)]
    results += [loss("b/x", s, 1.0 + 0.02 * s) for s in range(6)]
    text = text_of(results)
    # who is ahead is said, and not only that some verdict was reached
    assert (
        "**Answer.** Loss, paired over seeds, at the learning rates that were used: b/x is ahead of every other arm"
        in text
    )
    row = next(
        line for line in text.partition("## Against the best")[2].splitlines() if line.startswith("| a/x")
    )
    assert row.endswith("| behind |")
    text = text_of(results, reference="a/x")
    assert "## Paired comparisons with a/x" in text
    assert (
        "**Answer.** Loss, paired over seeds with a/x, at the learning rates that were used: b/x was ahead of a/x."
        in text
    )
    assert "Up to 6 seeds for each arm." in text


def test_without_items_or_seeds_there_is_no_verdict(text_of):
    def loss(arm, value):
        score = ImportedScore(metric="loss", value=value, unit="nats", lower_is_better=True)
        return result(arm, 1, scores=(score,), costs={})

    text = text_of([loss("a/x", 2.0), loss("b/x", 1.0)])
    assert "No verdict is possible: no two arms share six seeds" in text


def test_a_suite_that_nobody_has_is_an_error(tmp_path):
    with pytest.raises(StudyError, match="no experiment in suite 'else'"):
        write_report(Imported([]), suite_name="else", output=tmp_path / "R.md")


def test_a_result_that_another_run_replaced_is_told_and_not_pooled(text_of):
    rerun = result("a/x", 700, sources={"environment": "torch 2.10"}, imported_at="2026-02-02T00:00:00+00:00")
    text = text_of([result("a/x", 694), rerun, result("b/x", 677)])
    assert "a/x: 1 earlier result(s) of the same settings and seed are not counted" in text
    row = next(line for line in text.splitlines() if line.startswith("| a/x"))
    assert "0.531" in row  # 700 / 1319
    assert "LS601" in text


def test_intervals_are_drawn(tmp_path):
    results = [result("a/x", 694), result("b/x", 600)]
    _, _, *images = write_report(Imported(results), suite_name="public", output=tmp_path / "R.md")
    assert [image.relative_to(tmp_path).as_posix() for image in images] == [
        "r/plots/imported_shares.png", "r/plots/imported_shares.svg",
    ]  # fmt: skip
    assert "](r/plots/imported_shares.png)" in (tmp_path / "R.md").read_text(encoding="utf-8")
