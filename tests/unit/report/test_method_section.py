"""What the linter found, as the report tells it."""

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.lint.lint import RULES
from lorastudy.report.document import Bullets, Code, Details, Heading, Paragraph
from lorastudy.report.sections.method import fairness_blocks
from lorastudy.stats.study import split_studies


@pytest.fixture
def blocks_of(make_result):
    def blocks_of(settings_of, *, seeds=range(6), **losses):
        results = [
            make_result(name, seed, settings=settings, scores={("eval", "loss"): losses.get(name, 1.0)})
            for name, settings in settings_of.items()
            for seed in seeds
        ]
        (study,) = split_studies(results)
        return fairness_blocks(analyse(study).lint, num_arms=len(study.arms), level=2)

    return blocks_of


def plain(text):
    return "".join(span if isinstance(span, str) else span.text for span in text)


def test_no_breach_is_said_too(blocks_of):
    rates = {f"lr{rate}": {"learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)}
    heading, paragraph = blocks_of(rates, **{"lr0.002": 0.9})  # the best is in the middle
    assert heading == Heading(level=2, text="Fairness of the comparison")
    assert plain(paragraph.text) == (
        f"The linter checks these arms against {len(RULES)} rules of fair comparison and found no breach of any."
    )


def test_findings_with_their_reason_source_and_remedy(blocks_of):
    arms = {"a": {"lora_rank": 4}, "b": {"lora_rank": 8, "max_steps": 9}}
    _, counts, items, why = blocks_of(arms, seeds=[0], a=0.9)
    assert isinstance(counts, Paragraph)
    assert isinstance(items, Bullets)
    assert isinstance(why, Details)
    assert plain(counts.text).endswith("It found 1 that invalidates verdicts, 2 warnings and 1 note.")
    texts = [plain(item) for item in items.items]
    assert [text[:5] for text in texts] == ["LS203", "LS101", "LS401", "LS304"]
    assert texts[0] == (
        "LS203 Unequal length of training (invalidates verdicts; a): 1 epoch, the reference's 9 steps; other settings "
        "differ too."
    )
    (reasons,) = why.blocks
    assert plain(reasons.items[0]) == (
        "LS203 Unequal length of training. Why: arms learn at different speeds, so which one is ahead depends on when training stops (Biderman "
        "et al., arXiv 2405.09673, where the gap between LoRA and full fine-tuning changes with the tokens seen). To "
        "change: give all arms the same max_steps or num_train_epochs, or vary nothing else."
    )
    assert Code("max_steps") in reasons.items[0]
    (in_markdown,) = why.unfolded
    assert plain(in_markdown.text) == "The HTML page beside this file says why, and what to change."
