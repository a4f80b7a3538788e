"""Evidence: whether seeds, held-out items, metrics and environments suffice for a verdict, and match between arms."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

from lorastudy.lint.case import Breach, Case, Rule, Severity, names, reporting_rows, sample_in_words, seeds_of
from lorastudy.protocol.records import DataSummary, RowsRead
from lorastudy.stats.study import StudyArm, reporting_split, same_environment, stored_split
from lorastudy.stats.summary import EXACT_MATCH, METRICS, metric_versions
from lorastudy.suite.question import MIN_SEEDS

#: A larger share of held-out rows that are also trained on can carry a difference by itself.
MAX_LEAKED_SHARE = 0.01
#: A mean difference of d standard deviations is shown with power .8 at the 5 % level from n = ((z(.975) + z(.8)) / d)**2
#: rows on. Cohen calls d = 0.5 medium and 0.2 small. The rule uses 0.25, since 0.2 (197 rows) would warn of nearly every
#: held-out set.
_SDS = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
NUM_ROWS_FOR_A_HALF = math.ceil((_SDS / 0.5) ** 2)
#: The standard error of a share is at most half a point over the root of the number of rows: 5 points with a hundred.
NUM_ROWS_FOR_A_SHARE = 100
NUM_ROWS_FOR_A_QUARTER = math.ceil((_SDS / 0.25) ** 2)


#: The code of the rule on the number of seeds.
TOO_FEW_SEEDS = "LS401"
#: With fewer prompts, rows are held out one by one (`data.load`).
MIN_PROMPTS = 10
#: In the order of the messages.
SPLITS = ("train", "eval", "test", "forgetting")
_SPLIT_NAMES = {"train": "training", "eval": "held-out"}
_ONE_ROW = "one row to score: it says nothing about other rows, and more seeds do not change that"
#: Leaving out a share p of the rows moves the mean by up to sqrt(p / (1 - p)) standard deviations: 0.23 at 5 %, about the
#: quarter of `NUM_ROWS_FOR_A_QUARTER`. The longest rows are cut, not a random sample.
MAX_REFUSED_SHARE = 0.05
#: If more than half of the rows are cut, most of what is learnt and scored are answers without their end.
MAX_CUT_SHARE = 0.5


def _too_few_seeds(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None:
        return
    needed, own = MIN_SEEDS, seeds_of(reference, case.study)
    # an arm without any completed seed is reported as a failure
    others = [arm for arm in case.others() if seeds_of(arm, case.study)]
    few = [arm for arm in others if len(seeds_of(arm, case.study) & own) < needed]
    if few:
        most = max(len(seeds_of(arm, case.study) & own) for arm in few)
        # Once there are results, the verdict of each pair says so; before the run only this finding does.
        no_verdict = most < 2 and not case.study.completed
        yield Breach(
            arms=names(few),
            found=f"{_what_they_show(most)}; with fewer than {needed} no difference can be shown",
            severity="invalidates" if no_verdict else "warning",
        )


def _what_they_show(num_seeds: int) -> str:
    """What this number of shared seeds can show at best."""
    if num_seeds < 2:
        shared = "one seed" if num_seeds else "no seed"
        return f"{shared} shared with the reference: nothing is known about the noise between seeds, so no verdict is possible"
    least = 2.0 ** (1 - num_seeds)
    return (
        f"at most {num_seeds} seeds shared with the reference: the exact test cannot go below p = {least:.2g}"
    )


def _unequal_seeds(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None:
        return
    own = seeds_of(reference, case.study)
    apart = [arm for arm in case.others() if seeds_of(arm, case.study) ^ own and seeds_of(arm, case.study)]
    if apart:
        yield Breach(
            arms=names(apart),
            found="other seeds than the reference's; only shared ones are compared",
            severity="warning",
        )


def _leaked_items(case: Case) -> Iterator[Breach]:
    for leaked, rows in dict.fromkeys(_leaks(case)):
        arms = [arm for arm in case.arms if _leak_of(case, arm) == (leaked, rows)]
        yield Breach(
            arms=names(arms),
            found=f"{leaked:,} of {rows:,} held-out rows are also in the training rows",
            severity="invalidates" if leaked > MAX_LEAKED_SHARE * rows else "warning",
        )


def _leaks(case: Case) -> list[tuple[int, int]]:
    found = [_leak_of(case, arm) for arm in case.arms]
    return [leak for leak in found if leak is not None and leak[0] > 0]


def _leak_of(case: Case, arm: StudyArm) -> tuple[int, int] | None:
    facts = case.facts_of(arm)
    if facts.num_leaked_rows is None or facts.num_test_rows is None:
        return None
    return (facts.num_leaked_rows, facts.num_test_rows)


def _known_prompts(case: Case) -> Iterator[Breach]:
    """Held-out rows whose prompt, but not whose content, is in the training rows; `_leaked_items` reports the others."""
    by_found: dict[tuple[str, Severity], list[StudyArm]] = {}
    for arm in case.arms:
        facts = case.facts_of(arm)
        rows, known = facts.num_test_rows, facts.num_known_prompts or 0
        near, compared = facts.num_near_copies or 0, facts.num_compared_rows or 0
        text = []
        if rows and known > (facts.num_leaked_rows or 0):
            text.append(
                f"{known:,} of {rows:,} held-out rows have a prompt that is also in the training rows"
            )
            if facts.split_by == "row":
                text.append(f"there are fewer than {MIN_PROMPTS} prompts, so rows are held out one by one")
        if near:
            text.append(f"{near:,} of {compared:,} that were compared have one that differs by a few words")
            read = reporting_rows(facts.rows)
            text += [words for words in [sample_in_words(read.summary) if read else ""] if words]
        if text:
            is_grave = known > MAX_LEAKED_SHARE * (rows or 0) or near > MAX_LEAKED_SHARE * compared
            by_found.setdefault(("; ".join(text), "warning" if is_grave else "note"), []).append(arm)
    for (found, severity), arms in by_found.items():
        yield Breach(arms=names(arms), found=found, severity=severity)


def _few_rows(case: Case) -> Iterator[Breach]:
    by_number: dict[int, list[StudyArm]] = {}
    for arm in case.arms:
        num_rows = _num_scored_rows(case, arm)
        if num_rows is not None and num_rows < NUM_ROWS_FOR_A_QUARTER:
            by_number.setdefault(num_rows, []).append(arm)
    for num_rows, arms in by_number.items():
        if num_rows < 2:
            yield Breach(arms=names(arms), found=_ONE_ROW, severity="invalidates")
            continue
        text = (
            f"{num_rows:,} rows to score: a difference of less than {_SDS / math.sqrt(num_rows):.2g} "
            "standard deviations of its values by row is missed in more than one study of five"
        )
        enough = NUM_ROWS_FOR_A_HALF
        if case.metric.is_of_answers and case.metric.unit == "share":
            enough, error = NUM_ROWS_FOR_A_SHARE, 50 / math.sqrt(num_rows)
            text += f"; one row is {100 / num_rows:.2g} points of {case.metric.title.lower()}, whose standard error is up to {error:.2g} points"
        yield Breach(arms=names(arms), found=text, severity="warning" if num_rows < enough else "note")


def _num_scored_rows(case: Case, arm: StudyArm) -> int | None:
    """Rows that the primary metric is measured on; `max_generation_samples` limits metrics of generated answers."""
    num_rows = case.facts_of(arm).num_test_rows
    if num_rows is None or not case.metric.is_of_answers:
        return num_rows
    return min(num_rows, arm.typed_settings.max_generation_samples)


def _rows_cut(case: Case) -> Iterator[Breach]:
    """Rows of any split that were cut or refused; the worst split gives the severity."""
    by_rows: dict[tuple[RowsRead, ...], list[StudyArm]] = {}
    for arm in case.arms:
        by_rows.setdefault(case.facts_of(arm).rows, []).append(arm)
    for rows, arms in by_rows.items():
        in_order = sorted(rows, key=lambda read: SPLITS.index(read.summary.split))
        cut = [read for read in in_order if _share_cut(read.summary) > MAX_REFUSED_SHARE]
        if not cut:
            continue
        length = arms[0].typed_settings.max_seq_length
        is_grave = any(
            _share_refused(read.summary) > MAX_REFUSED_SHARE or _share_cut(read.summary) > MAX_CUT_SHARE
            for read in cut
        )
        found = f"at max_seq_length {length}, {'; '.join(_fate(read.summary) for read in cut)}"
        yield Breach(
            arms=names(arms),
            found=found + _lengths_wanted(rows),
            severity="warning" if is_grave else "note",
        )


def _long_answers(case: Case) -> Iterator[Breach]:
    """Answers of the reporting rows that generation cannot reach; no verdict on exact match if that is all of them."""
    by_counts: dict[tuple[int, int, int], list[StudyArm]] = {}
    for arm in case.arms:
        read = reporting_rows(case.facts_of(arm).rows)
        summary = None if read is None else read.summary
        if summary is not None and summary.num_asked_rows and summary.num_long_answers:
            limit = arm.typed_settings.max_new_tokens
            counts = (summary.num_long_answers, summary.num_asked_rows, limit)
            by_counts.setdefault(counts, []).append(arm)
    for (num_long, num_asked, limit), arms in by_counts.items():
        grave: Severity = "invalidates" if num_long == num_asked else "warning"
        yield Breach(
            arms=names(arms),
            found=f"of {num_asked:,} rows that are answered for exact match, {num_long:,} {'has' if num_long == 1 else 'have'} "
            f"an answer of more than {limit:,} tokens (max_new_tokens), which nothing generated can match",
            severity=grave if case.metric == EXACT_MATCH else "note",
        )


def _share_refused(summary: DataSummary) -> float:
    return summary.num_refused_rows / (summary.num_rows + summary.num_refused_rows)


def _share_cut(summary: DataSummary) -> float:
    """The share of all rows that lost their end or their whole answer."""
    lost = summary.num_truncated_rows + summary.num_refused_rows
    return lost / (summary.num_rows + summary.num_refused_rows)


def split_name(split: str) -> str:
    """The reader's name of a split; `test` and `forgetting` keep theirs."""
    return _SPLIT_NAMES.get(split, split)


def _fate(summary: DataSummary) -> str:
    """`of 800 training rows 511 are cut short and 289 left out`; of a sample of them, if there are too many to read all."""
    num_read, unread = summary.num_rows + summary.num_refused_rows, summary.num_unread_rows or 0
    of = f"of {num_read + unread:,} {split_name(summary.split)} rows"
    of += f" a sample of {num_read:,} was read:" if unread else ""
    short, out = summary.num_truncated_rows, summary.num_refused_rows
    text = [f"{short:,} {'is' if short == 1 else 'are'} cut short"] * (short > 0)
    text += [f"{out:,} left out, with no answer left"] * (out > 0)
    return f"{of} {' and '.join(text)}"


def _lengths_wanted(rows: Sequence[RowsRead]) -> str:
    """The max_seq_length that keeps the rows of all splits; empty if only their counts are known."""
    longest = [read.length_of_all for read in rows if read.length_of_all is not None]
    most = [read.length_of_most for read in rows if read.length_of_most is not None]
    if not longest or not most:
        return ""
    are_all_read = not any(read.summary.num_unread_rows for read in rows)
    them = "all of them" if are_all_read else "all that were read"
    if max(most) == max(longest):
        return f"; max_seq_length {max(longest):,} keeps {them} whole"
    return f"; max_seq_length {max(longest):,} keeps {them} whole, {max(most):,} at least 95 % of each split"


def _tokenizers(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None:
        return
    apart = [arm for arm in case.others() if _tokenizer_of(case, arm) != _tokenizer_of(case, reference)]
    if apart:
        yield Breach(
            arms=names(apart),
            found="another base model than the reference's, whose tokenizer is not known to be the same",
            severity="invalidates",
        )


def _tokenizer_of(case: Case, arm: StudyArm) -> str:
    """The tokenizer's fingerprint if known, else the base model."""
    known = case.facts_of(arm).tokenizer
    if known is not None:
        return known
    fingerprint = arm.results[0].sources.get("base_model")
    return str(fingerprint if fingerprint is not None else arm.settings.get("base_model"))


def _chosen_where_reported(case: Case) -> Iterator[Breach]:
    """Arms whose checkpoint was chosen on the rows that report."""
    if case.study.completed and reporting_split(case.study) == "test":
        return
    arms = [arm for arm in case.arms if arm.typed_settings.selects]
    if not case.study.completed:
        arms = [arm for arm in arms if not arm.typed_settings.has_test_split]
    if arms:
        yield Breach(
            arms=names(arms),
            found="the held-out rows chose the checkpoint, or when to stop, and they also report: the score is the best of several",
            severity="invalidates",
        )


def _chosen_by_few_rows(case: Case) -> Iterator[Breach]:
    by_number: dict[int, list[StudyArm]] = {}
    for arm in case.arms:
        rows = [read for read in case.facts_of(arm).rows if read.summary.split == "eval"]
        num_rows = rows[0].summary.num_usable_texts if rows else None
        if arm.typed_settings.selects and num_rows is not None and num_rows < NUM_ROWS_FOR_A_HALF:
            by_number.setdefault(num_rows, []).append(arm)
    for num_rows, arms in by_number.items():
        yield Breach(
            arms=names(arms),
            found=f"{num_rows:,} validation row{'s' * (num_rows != 1)} to choose the checkpoint, or when to stop; {NUM_ROWS_FOR_A_HALF} rows show "
            "a difference of half a standard deviation",
            severity="warning",
        )


def _metric_versions(case: Case) -> Iterator[Breach]:
    for metric in (*METRICS, *case.added_metrics):
        versions = sorted(metric_versions(case.study, metric))
        if len(versions) > 1:
            old = [
                arm
                for arm in case.arms
                if any(
                    (score := result.scores.get((stored_split(metric.split, case.study), metric.name)))
                    and score.version < versions[-1]
                    for result in arm.completed
                )
            ]
            yield Breach(
                arms=names(old),
                found=f"{metric.title.lower()} was measured by version {', '.join(map(str, versions[:-1]))} of its definition "
                f"beside {versions[-1]}; only the newest counts",
                severity="warning",
            )


def _environments(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None or not reference.completed:
        return
    own = reference.completed[0]
    mixed = [arm for arm in case.arms if any(not same_environment(result, own) for result in arm.completed)]
    if mixed:
        yield Breach(
            arms=names(mixed),
            found="some or all seeds with other library versions or on another kind of device than the reference's first run; "
            "such pairs are left out",
            severity="warning",
        )


RULES = (
    Rule(
        code=TOO_FEW_SEEDS,
        title="Too few seeds for a verdict",
        why="with n paired seeds the exact sign-flip test gives p = 2 / 2^n at best, so fewer than six seeds cannot show any "
        "difference at the 5 % level, however large",
        source="Fisher's exact randomization test; PEFT's method_comparison has one seed for each of its results",
        change=f"give `seeds` at least {MIN_SEEDS} values, the same for all arms",
        find=_too_few_seeds,
    ),
    Rule(
        code="LS402",
        title="Unequal seeds",
        why="a seed that one arm lacks has no pair, so its noise stays in the means and its run adds nothing to a verdict",
        source="Bouthillier et al., arXiv 2103.03098",
        change="give all arms the same `seeds`; run what failed again",
        find=_unequal_seeds,
    ),
    Rule(
        code="LS501",
        title="Test items in the training data",
        why="the adapter remembers rows that it was trained on instead of solving them, and a larger adapter remembers more; in "
        "standard data sets over 4 % of the validation rows were also in the training set",
        source="Lee et al., arXiv 2107.06499",
        change="remove these rows from the training file, or use `eval_fraction`, which splits by prompt and rules this out",
        find=_leaked_items,
    ),
    Rule(
        code="LS503",
        title="Perplexity across tokenizers",
        why="loss and perplexity are per token, and another tokenizer splits the same text into other tokens",
        source="Gao et al., The Pile, arXiv 2101.00027, which compares in bits per byte for this reason",
        change="compare within one base model, or by exact match, or in bits per byte",
        find=_tokenizers,
    ),
    Rule(
        code="LS504",
        title="Metric versions side by side",
        why="a metric whose definition was corrected measures something else: the corrected values of a published forgetting "
        "metric ranked the methods quite differently",
        source="PEFT pull requests 2986 and 3419",
        change="run the arms with the older version again",
        find=_metric_versions,
    ),
    Rule(
        code="LS505",
        title="Few rows to score",
        why="items differ in difficulty and every seed is scored on the same items, so more seeds do not make up for few rows: "
        "to find a mean difference of half a standard deviation of its values by row in four studies of five takes "
        f"{NUM_ROWS_FOR_A_HALF} rows, a difference of a quarter {NUM_ROWS_FOR_A_QUARTER} rows",
        source="Card et al., arXiv 2010.06595; Miller, arXiv 2411.00640; the sizes of effects are Cohen's (1988)",
        change="hold out more rows (`eval_fraction`, `test_fraction`, or a separate file), or claim only large differences",
        find=_few_rows,
    ),
    Rule(
        code="LS506",
        title="Rows cut short or left out",
        why="tokens that are cut are neither learnt nor scored, the end of the answer goes first, and only long rows lose it: "
        f"leaving out {100 * MAX_REFUSED_SHARE:.0f} % of the rows can move a mean by 0.23 standard deviations of its values by row, and "
        "if most rows lack their end, no arm learns where an answer stops",
        source="Ding et al., arXiv 2404.10830, where models made up less once fewer training texts were cut; Card et al., arXiv "
        "2010.06595, for sizes of effects",
        change="raise `max_seq_length` (`lorastudy check` says how far), or read the results as those of the short rows",
        find=_rows_cut,
    ),
    Rule(
        code="LS507",
        title="Answers longer than generation allows",
        why="a generated answer ends after `max_new_tokens`, so a longer reference counts as wrong for every arm: the more such "
        "rows there are, the less exact match separates the arms, and if all rows are such, it is 0 for all arms",
        source="greedy generation stops there; reported for NeMo-RL, issue 2725",
        change="raise `max_new_tokens`; under `primary_metric: loss` this concerns exact match alone, which decides nothing",
        find=_long_answers,
    ),
    Rule(
        code="LS508",
        title="Held-out prompts in the training data",
        why="for such a prompt the adapter repeats the answer that it learnt, so these scores show what it remembers and not what "
        "it does with a new prompt, and a larger adapter remembers more",
        source="Lewis et al., arXiv 2008.02637, where 30 % of the test questions of three sets were paraphrases of training "
        "questions and models did 63 points worse on the others; Lee et al., arXiv 2107.06499, for near copies",
        change="use `eval_fraction`, which keeps all rows of a prompt on one side; remove near copies from one side",
        find=_known_prompts,
    ),
    Rule(
        code="LS509",
        title="Checkpoint chosen on the rows that report",
        why="the best of many checkpoints is partly the luckiest one, so its score on the rows that chose it is better than on new "
        "rows, and the more so the more checkpoints there were",
        source="Cawley and Talbot, JMLR 11 (2010), on bias from choosing a model; Dodge et al., arXiv 1909.03004",
        change="add test rows (`test_fraction` or `test_dataset_path`), on which results are then reported",
        find=_chosen_where_reported,
    ),
    Rule(
        code="LS510",
        title="Checkpoint chosen by few rows",
        why="checkpoints of one run differ by little, and with few rows the noise of the rows decides which one is best or when the "
        "loss has stopped falling",
        source="Dodge et al., arXiv 2002.06305, on stopping early; Card et al., arXiv 2010.06595, on the number of rows",
        change="hold out more validation rows (`eval_fraction`, `eval_dataset_path`), or keep the last checkpoint",
        find=_chosen_by_few_rows,
    ),
    Rule(
        code="LS601",
        title="Software environments side by side",
        why="the same configuration, seed and GPU gave another answer after a library upgrade: 38 re-runs moved by -1.65 "
        "points on average, and 21 of 105 pairs among the best 15 swapped order",
        source="PEFT's method_comparison, results of two dates",
        change="run the older arms again in the current environment",
        find=_environments,
    ),
)
