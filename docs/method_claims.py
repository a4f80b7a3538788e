"""What published work says of methods, and what the kept studies of methods show of it. `docs/methods.md` has the tables.

Whether a study agrees is decided by the rule of `docs/laws.md`: on which side of zero the 95 % interval of a paired
difference lies.
"""

from dataclasses import dataclass

from laws import ABOVE, BELOW, Paired, configurations, difference

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import count, number, signed
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import FORGETTING, LOSS, LOSS_BEFORE, Metric, scores_by_seed


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published claim on one arm against plain LoRA: the side of zero on which the difference should lie."""

    arm: str
    words: str
    source: str
    expected: int
    metric: Metric = LOSS


CLAIMS = (
    Claim(arm="dora", words="DoRA ends below LoRA", source="arXiv 2402.09353", expected=BELOW),
    Claim(arm="loraplus", words="LoRA+ ends below LoRA", source="arXiv 2402.12354", expected=BELOW),
    Claim(arm="pissa", words="PiSSA ends below LoRA", source="arXiv 2404.02948", expected=BELOW),
    Claim(
        arm="full",
        words="Full fine-tuning learns more than LoRA",
        source="arXiv 2405.09673",
        expected=BELOW,
    ),
    Claim(
        arm="full",
        words="Full fine-tuning forgets more than LoRA",
        source="arXiv 2405.09673",
        expected=ABOVE,
        metric=FORGETTING,
    ),
)

#: The studies that are kept, and those of them whose arms are the claims' methods.
STUDIES = ("methods", "full_vs_lora", "alpaca_methods")
CLAIMED = ("methods", "alpaca_methods")


def claims_table(analysis: Analysis) -> Table:
    """A row for each claim that the study can judge, with the difference and in percent of LoRA's gain."""
    study, arms = analysis.study, configurations(analysis.study)
    lora = arms["lora"]
    gain = _mean(study, lora, metric=LOSS_BEFORE) - _mean(study, lora, metric=LOSS)
    rows = []
    for claim in CLAIMS:
        if not scores_by_seed(lora, study, metric=claim.metric):
            continue
        found = difference(study, arms[claim.arm], lora, metric=claim.metric)
        share = f"{signed(100 * found.mean / gain, 1)} %" if claim.metric == LOSS else ""
        what = "held-out loss" if claim.metric == LOSS else "loss on old rows"
        cells = (claim.source, what, _shown(found), share, found.outcome(claim.expected))
        rows.append((Cell(claim.words), *map(Cell, cells)))
    titles = ("Source", "Compared", "Minus LoRA, 95 % interval", "Of LoRA's gain", "This study")
    return Table(
        columns=(
            TableColumn("Claim", numeric=False),
            *(TableColumn(title, numeric=False) for title in titles),
        ),
        rows=tuple(rows),
    )


def rate_words(analysis: Analysis) -> str:
    """The ratio of the two learning rates that were found, the sizes of both arms, and how far apart the adapters are."""
    arms, study = configurations(analysis.study), analysis.study
    losses = {name: _mean(study, arm, metric=LOSS) for name, arm in arms.items() if name != "full"}
    apart = max(abs(loss - losses["lora"]) for loss in losses.values())
    lora, full = arms["lora"], arms["full"]
    ratio = lora.learning_rate / full.learning_rate
    sizes = [_num_parameters(arm) for arm in (lora, full)]
    return (
        f"LoRA's learning rate is {number(ratio, 1)} times that of full fine-tuning ({lora.learning_rate:g} and "
        f"{full.learning_rate:g}); the published factor is about ten. LoRA trains {count(sizes[0])} parameters, full "
        f"fine-tuning {count(sizes[1])}. The other adapters end within {signed(apart, 3).removeprefix('+')} nats per token of LoRA, "
        f"{number(100 * apart / losses['lora'], 2)} % of its loss."
    )


def _shown(found: Paired) -> str:
    low, high = found.interval
    return f"{signed(found.mean, 4)} [{signed(low, 4)}, {signed(high, 4)}]"


def _num_parameters(arm: StudyArm) -> int:
    return next(run.profile.num_trainable_parameters for run in arm.completed if run.profile is not None)


def _mean(study: Study, arm: StudyArm, *, metric: Metric) -> float:
    scores = scores_by_seed(arm, study, metric=metric)
    return sum(scores.values()) / len(scores)
