"""What guessing scores stands in the table of results, and is no arm."""

import math
from collections import Counter

import labelled
from lorastudy.report import read_report
from lorastudy.report.document import Details, Paragraph, Table, plain
from lorastudy.report.numbers import ABSENT
from lorastudy.report.sections.results import results_blocks
from lorastudy.suite.question import Question

QUESTION = Question(tuning_seeds=(labelled.TUNING_SEED,))


def table_of(arms, **changes):
    results, items = labelled.results_of(arms, **changes)
    (studied,) = read_report(labelled.tracker_of(results, items, question=QUESTION)).studies
    blocks = results_blocks(studied.analysis, level=2)
    folded = [block for details in blocks if isinstance(details, Details) for block in details.blocks]
    text = " ".join(plain(block.text) for block in (*blocks, *folded) if isinstance(block, Paragraph))
    (table,) = [block for block in blocks if isinstance(block, Table)]
    titles = [column.title for column in table.columns]
    return text, {row[0].text: dict(zip(titles, row, strict=True)) for row in table.rows}


def test_trivial_predictors_are_rows_below_the_arms_with_scores_and_no_costs():
    text, rows = table_of({1: labelled.same_word, 4: labelled.learnt})
    assert list(rows) == [
        "r=1", "r=4 (reference)", "answer frequencies (no model)", "token frequencies (no model)",
        "the constant answer (no model)",
    ]  # fmt: skip
    seen = Counter(labelled.TRAIN)
    # Two tokens an answer; of 401 counts one is left for labels that training never has.
    loss = sum(-math.log(seen[label] / 401) for label in labelled.HELD_OUT) / 800
    of_frequencies = rows["answer frequencies (no model)"]
    assert abs(of_frequencies["Held-out loss (nats/token)"].value - loss) < 1e-12
    assert abs(of_frequencies["Perplexity"].value - math.exp(loss)) < 1e-12
    share = labelled.HELD_OUT.count(0) / 400
    constant = rows["the constant answer (no model)"]
    assert constant["Exact match"].value == share
    assert constant["Token accuracy"].text == ABSENT  # no arm has one here
    costs = ("Seeds", "Trainable", "Adapter", "Peak memory", "Step", "Tokens/s")
    for name in ("answer frequencies (no model)", "the constant answer (no model)"):
        assert {cell.text for title, cell in rows[name].items() if title.startswith(costs)} == {ABSENT}
    assert constant["Held-out loss (nats/token)"].text == of_frequencies["Exact match"].text == ABSENT
    assert "not arms but trivial predictors" in text
    assert "one always gives the most frequent answer (“good”)" in text


def test_runs_that_recorded_none_have_none_in_the_table():
    text, rows = table_of({1: labelled.same_word, 4: labelled.learnt}, trivial=())
    assert list(rows) == ["r=1", "r=4 (reference)"]
    assert "trivial" not in text
