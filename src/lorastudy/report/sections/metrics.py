"""The metrics that a suite adds: what each measures, and the rows for which it gave no number."""

from collections.abc import Iterator, Mapping

from lorastudy.analysis.overview import Analysis
from lorastudy.protocol.scoring import FailedRow
from lorastudy.report.document import Text
from lorastudy.report.numbers import plural
from lorastudy.stats.study import stored_split
from lorastudy.stats.summary import metric_of
from lorastudy.suite.metrics import MetricDefinition

#: What each metric of the package measures, after its title.
_ABOUT: Mapping[str, str] = {
    "token_f1": "precision and recall of words of the generated answer, their harmonic mean for each row (SQuAD's F1)",
    "rouge_l": "the longest common subsequence of words of the generated answer and its reference, as F1 for each row",
    "contains": "whether the reference occurs in the generated answer as whole words, whatever its case",
    "choice_accuracy": "whether the likeliest of a row's choices, by log-likelihood per byte, is its answer",
    "bits_per_byte": "negative log-likelihood of the answers in bits, divided by their UTF-8 bytes; comparable across tokenizers",
}


def metric_in_words(definition: MetricDefinition) -> str:
    """`token_f1`, or `right_number (metrics.py, sha256 1a2b3c4d5e6f)` for a function of the user's own."""
    if definition.source_sha256 is None:
        return definition.name
    return f"{definition.name} ({definition.file}, sha256 {definition.source_sha256[:12]})"


#: The store keeps the environment of a run, but not that of a later scoring of its adapter.
WHERE_SCORED = (
    "The metrics that the suite adds were scored on stored adapters. On which device that was is not recorded: if it was not "
    "the same for all arms, part of a difference may come from the device."
)


def metric_items(analysis: Analysis) -> list[Text]:
    """One item for each added metric: its title, what it measures, and which direction is good; then where all were scored."""
    items: list[Text] = []
    for definition in analysis.criterion.definitions:
        better = "more is better" if definition.higher_is_better else "less is better"
        about = _ABOUT.get(definition.name, "")
        if definition.file is not None:
            about = f"the function {definition.function} of {definition.file} (sha256 {(definition.source_sha256 or '')[:12]}), called for each row"
        items.append((f"{definition.title}: {about}; {better}.",))
    return [*items, (WHERE_SCORED,)] if items else items


def failed_row_notes(analysis: Analysis) -> Iterator[Text]:
    """For each added metric that failed for some rows: how many of which arms, and the first of them with its message."""
    study = analysis.study
    for definition in analysis.criterion.definitions:
        key = (stored_split(metric_of(definition).split, study), definition.key)
        num_failed: dict[str, int] = {}
        num_rows: dict[str, int] = {}
        first: FailedRow | None = None
        for arm in study.reported_arms:
            for run in arm.completed:
                if run.seed in study.tuning_seeds or key not in run.failed_rows:
                    continue
                failed = run.failed_rows[key]
                num_failed[arm.name] = num_failed.get(arm.name, 0) + len(failed.rows)
                num_rows[arm.name] = num_rows.get(arm.name, 0) + failed.num_rows
                first = first or failed.rows[0]
        if first is not None:
            of_arms = "; ".join(
                f"{name}: {number} of {num_rows[name]}" for name, number in num_failed.items()
            )
            is_ranked = key[1] == analysis.primary.name and len(study.reported_arms) > 1
            means = (
                " The score of each arm, its place on the frontier and the set of arms that may be the best are about its own rows, "
                "and flatter an arm that failed on hard ones."
                if is_ranked
                else ""
            )
            text = (
                f"{definition.title} gave no number for {plural(sum(num_failed.values()), 'row')} ({of_arms}), such as "
                f"{first.where}: {first.message}. Two arms are compared on the rows that both have. An arm whose answers the metric "
                f"cannot read is not worse for it: let the function return its worst number for them.{means}"
            )
            yield (text,)
