"""How the numbers were made, how fair their comparison is, and how to rerun it.

What is measured, what varies between seeds, the environment, and what is absent. The linter's findings say how fair the comparison
is, why that matters, and what to change.

The suite file for a rerun is the suite's own, from the store. For an older store, and for runs that no single suite requested, it
is put together from the runs and from their stated question.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorastudy.analysis.overview import Analysis
from lorastudy.lint.case import LintFinding, Severity, arms_in_words
from lorastudy.lint.lint import RULES
from lorastudy.protocol.records import DataSummary, Environment
from lorastudy.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    CodeBlock,
    Details,
    Heading,
    Paragraph,
    Shown,
    Strong,
    Table,
    TableColumn,
    Text,
)
from lorastudy.report.findings.wording import rows_that_belong_together, why_these_items_alone
from lorastudy.report.numbers import (
    ABSENT,
    EQUAL_TIMES,
    MEMORY_KINDS,
    count,
    listing,
    names,
    number,
    percent,
    unknown_times,
)
from lorastudy.report.rows import about_full_length, laid_out, left_out, repeated, rows_in_words
from lorastudy.report.sections.metrics import metric_items
from lorastudy.report.sections.overview import setting_values
from lorastudy.stats.study import EnvironmentGroup, Study, StudyArm, environment_groups, reporting_split
from lorastudy.stats.summary import METRICS, metric_versions
from lorastudy.stats.verdicts import measured_errors
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.question import Question, all_seeds, configuration_name
from lorastudy.suite.suite import Arm, Suite
from lorastudy.suite.suite_file import suite_yaml

#: Settings that decide which rows are held out, and how much of each is scored.
_HELD_OUT_KEYS = (
    "dataset_path", "eval_dataset_path", "eval_fraction", "test_dataset_path", "test_fraction", "max_train_samples",
    "max_eval_samples", "max_seq_length",
)  # fmt: skip
#: Verdicts may err at most this often; a simulated share may be off by one point.
ERROR_AIM = 0.05
SIMULATION_ERROR = 0.01
#: Kinds of noise whose errors are shown one by one, besides those that break the rule.
_KINDS_SHOWN = ("skewed seeds", "rows in clusters", "recorded")

_COUNTED: Mapping[Severity, str] = {
    "invalidates": "{n} that invalidates verdicts|{n} that invalidate verdicts",
    "warning": "{n} warning|{n} warnings",
    "note": "{n} note|{n} notes",
}


def method_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    """How the numbers were measured, and what was not measured."""
    study = analysis.study
    items: list[Text] = [
        _scores(study),
        *metric_items(analysis),
        _seeds(study),
        (f"Memory: {_memory(study)}.", *_full_length(analysis)),
        (
            (
                f"Time: the median step of the arm alone; {EQUAL_TIMES}; real tokens only.{unknown_times(analysis.summaries)} "
                "Training time is the pack's, shared equally by the arms that trained in it."
            ),
        ),
        (f"Engine: {_engines(study)}.",),
        *_layers_left_out(study),
        (
            (
                f"Intervals are over {_what_intervals_cover(analysis)}; verdicts are about this data and this base model."
            ),
        ),
        *([_errors()] if analysis.primary_comparisons else []),
        *_data(study),
        *_trusted(study),
        *_pairs_left_out(analysis),
    ]
    blocks: list[Block] = [Heading(level=level, text="How it was measured"), Bullets(tuple(items))]
    if absent := _absent(analysis):
        blocks += [
            Heading(level=level, text="Not in this report"),
            Bullets(tuple((item,) for item in absent)),
        ]
    return blocks


def _errors() -> Text:
    """How often verdicts err in simulated studies, by kind of noise; the kinds that exceed the level come last."""
    by_kind = {_kind(one): (one["better"], one["as_good"]) for one in measured_errors()}
    held = {kind: errors for kind, errors in by_kind.items() if max(errors) <= ERROR_AIM + SIMULATION_ERROR}
    worst = (max(better for better, _ in held.values()), max(as_good for _, as_good in held.values()))
    sentence = [
        f"{kind} {_shares(held[kind])}" for kind in held if any(shown in kind for shown in _KINDS_SHOWN)
    ]
    broken = [f"{_shares(errors)} with {kind}" for kind, errors in by_kind.items() if kind not in held]
    text = (
        "Errors of the verdicts in simulated studies, false “better” and false “as good”: at most "
        f"{_shares(worst)} where the noise is mild ({listing(sentence)}), but {listing(broken)} (how: "
    )
    return (text, Code("docs/science.md"), ").")


def _kind(measured: Mapping[str, Any]) -> str:
    rows = "" if measured["num_rows"] is None else f"{measured['num_rows']} "
    return f"{rows}{measured['kind']}"


def _shares(errors: tuple[float, float]) -> str:
    return f"{number(100 * errors[0], 1)} and {percent(errors[1])}"


def environment_blocks(study: Study, *, level: int) -> list[Block]:
    """The environments in which the completed experiments ran, with a warning if there is more than one."""
    groups = environment_groups(study.completed)
    blocks: list[Block] = [Heading(level=level, text="Environment")]
    if not groups:
        return [*blocks, Paragraph(("No environment was recorded.",))]
    if len(groups) > 1:
        warning = f"Results come from {len(groups)} environments."
        rest = (
            " Differences are taken only between runs whose libraries and device agree; means over seeds may mix "
            "them. The same configuration can give another answer after an upgrade."
        )
        blocks.append(Paragraph((Strong(warning), rest)))
    return [*blocks, _environment_table(groups)]


def _what_intervals_cover(analysis: Analysis) -> str:
    """Whether the intervals include the noise between items."""
    made = [comparison for comparison in analysis.primary_comparisons if comparison.interval]
    if all(comparison.covers_new_items for comparison in made):
        grouped = rows_that_belong_together(made)
        return f"new seeds and new held-out items{grouped} (two-way cluster variance, Satterthwaite's t)"
    why = why_these_items_alone(analysis)
    return f"new seeds only: {why}, so the noise between items is not in them"


def _scores(study: Study) -> Text:
    rows, answers, length = (
        listing(setting_values(study.arms, key))
        for key in ("eval_dataset_path", "max_generation_samples", "max_new_tokens")
    )
    source = "rows held out of the training file by content hash" if rows == ABSENT else f"rows of {rows}"
    exact_match = (
        f" Exact match compares greedily generated answers, at most {answers} of them. An answer ends after {length} "
        "tokens (max_new_tokens), so a longer reference counts as wrong."
        if answers != "0"
        else ""
    )
    equal = all(len(setting_values(study.arms, key)) == 1 for key in _HELD_OUT_KEYS)
    shared = "the same for all arms" if equal else "not the same for all arms"
    return (
        (
            f"Held-out loss: nats per completion token over {source}, {shared}; perplexity is its exponential."
            f"{_on_test_rows(study)}{exact_match}"
        ),
    )


def _on_test_rows(study: Study) -> str:
    """Which of the held-out rows report; empty without test rows."""
    if reporting_split(study) != "test":
        return ""
    own = setting_values(study.arms, "test_dataset_path")
    source = "a part of them cut off by content hash" if own == [ABSENT] else f"the rows of {listing(own)}"
    return f" What is reported was measured on test rows, {source}; the other held-out rows only choose."


def _seeds(study: Study) -> Text:
    seeds = sorted({result.seed for result in study.results})
    orders = setting_values(study.arms, "data_seed")
    varies = "the adapter's initial weights and the dropout"
    if orders == [ABSENT]:
        varies = "the adapter's initial weights, the dropout and the order of the training rows, which all arms of a seed share"
    elif len(orders) == 1:
        varies += f"; the order of the training rows is fixed by data_seed {orders[0]}, equal for all arms and seeds"
    else:
        drawn = listing("the seed itself" if order == ABSENT else order for order in orders)
        varies += (
            f"; the order of the training rows follows data_seed, which differs between arms ({drawn}), so their "
            "pairs did not train on the same batches"
        )
    full = " Full fine-tuning draws nothing but that order." if any(arm.is_full for arm in study.arms) else ""
    return (f"Seeds: {listing(map(str, seeds))}. Between seeds vary {varies}.{full}",)


def _memory(study: Study) -> str:
    kinds = sorted({result.profile.memory_kind for result in study.completed if result.profile})
    if not kinds:
        return "not measured"
    listed = "; ".join(MEMORY_KINDS[kind] for kind in kinds)
    alone = f"{listed}, while the arm trains alone on the same base, at the step with the most tokens, once per arm"
    return alone if len(kinds) == 1 else f"of different kinds, which must not be compared ({alone})"


def _full_length(analysis: Analysis) -> Text:
    """On which rows the reference's memory was measured; empty if it was not measured."""
    arm = analysis.reference
    is_measured = arm is not None and analysis.summary(arm.name).costs.peak_memory_bytes is not None
    return about_full_length(arm) if arm is not None and is_measured else ()


def _layers_left_out(study: Study) -> list[Text]:
    """Layers that a preset includes and that were not adapted, once for each reason."""
    reasons = {
        reason: None for run in study.completed if run.profile for reason in run.profile.modules_left_out
    }
    return [(f"Not adapted, although a preset includes it: {'; '.join(reasons)}.",)] if reasons else []


def _engines(study: Study) -> str:
    uses = Counter(result.engine or "not recorded" for result in study.completed)
    parts = [f"{engine} for {times} of {uses.total()} experiments" for engine, times in sorted(uses.items())]
    both = (
        ". Memory and the time of a step depend on the engine, too, so compare them among arms of one engine"
    )
    return (", ".join(parts) or "none") + (both if len(uses) > 1 else "")


def _data(study: Study) -> list[Text]:
    """One item for each split as it was read; arms that read different data give several."""
    distinct: dict[DataSummary, None] = {}
    for result in study.completed:
        distinct.update(dict.fromkeys(result.data))
    return [
        (
            (
                f"Data, {data.split}: {rows_in_words(data)} ({data.format}), {count(data.num_tokens)} tokens, "
                f"{count(data.num_completion_tokens)} of them in answers; {count(data.num_truncated_rows)} rows cut "
                f"short, {count(data.num_refused_rows)} refused because nothing of the answer was left."
                f"{laid_out(data)}{left_out(data)}{repeated(data)}"
            ),
        )
        for data in distinct
    ]


def _trusted(study: Study) -> list[Text]:
    models = {str(r.settings["base_model"]) for r in study.results if r.settings.get("trust_remote_code")}
    if not models:
        return []
    text = f" trust_remote_code was on for {listing(sorted(models))}: what that code did is part of these numbers."
    return [(Strong("The model's own code was run."), text)]


def _pairs_left_out(analysis: Analysis) -> list[Text]:
    """One item for each reason why runs of one seed were not compared."""
    arms_by_reason: dict[str, dict[str, None]] = {}
    for family in analysis.comparisons.values():
        for comparison in family:
            for reason in comparison.seeds_apart.values():
                arms_by_reason.setdefault(reason, {})[comparison.arm] = None
    return [
        (
            Strong(f"{reason[:1].upper()}{reason[1:]}."),
            f" Pairs of {names(arms)} with the reference were left out for some seeds.",
        )
        for reason, arms in arms_by_reason.items()
    ]


def _absent(analysis: Analysis) -> list[str]:
    """What was not measured, with the setting that measures it."""
    remedies = {
        "exact_match": "set max_generation_samples above 0",
        "loss": "name a forgetting_dataset_path",
    }
    items = []
    for metric in METRICS:
        if not metric_versions(analysis.study, metric):
            remedy = remedies.get(metric.name) if metric.split != "eval" or metric.name != "loss" else None
            items.append(f"{metric.title}: not measured" + (f" ({remedy})." if remedy else "."))
    if not any(summary.costs.peak_memory_bytes for summary in analysis.summaries):
        items.append("Peak memory: not measured.")
    if not any(summary.costs.step_seconds for summary in analysis.summaries):
        items.append(f"Step time: not measured.{unknown_times(analysis.summaries)}")
    if not any(result.prediction for result in analysis.study.completed):
        items.append("Memory predicted before the run: none was stored, so none is scored here.")
    return items


def _environment_table(groups: tuple[EnvironmentGroup, ...]) -> Table:
    titles = [f"Environment {index}" for index in range(1, len(groups) + 1)] if len(groups) > 1 else ["Value"]
    names = [field.name for field in fields(Environment)]
    rows = [
        (
            Cell(name.replace("_", " ")),
            *(Cell(str(ABSENT if value is None else value)) for value in values),
        )
        for name in names
        for values in [[getattr(group.environment, name) for group in groups]]
    ]
    rows.append((Cell("experiments"), *(Cell(str(len(group.experiments))) for group in groups)))
    return Table(
        columns=(TableColumn("", numeric=False), *(TableColumn(title, numeric=False) for title in titles)),
        rows=tuple(rows),
    )


def reproduce_blocks(suite: Suite, *, level: int, output: Path, same_bits: bool) -> list[Block]:
    """Commands and the suite file. Paths in it are those of the machine that ran it."""
    promise = (
        "On the same machine, with the same library versions and thread count, you get the same bits; elsewhere the numbers "
        "agree within the spread over seeds."
        if same_bits
        else "These runs were not deterministic (deterministic: false on a GPU). A second run differs in the last bits, on the "
        "same machine too; the numbers agree within the spread over seeds."
    )
    report = ["lorastudy", "report", "--suite-name", suite.name, "--output", output.name]
    commands = f"lorastudy suite suite.yaml\n{shlex.join(report)}"
    return [
        Heading(level=level, text="Reproduce"),
        Paragraph(
            (
                "Save the settings below as ",
                Code("suite.yaml"),
                f". {promise}",
            )
        ),
        CodeBlock(commands, "bash"),
        CodeBlock(suite_yaml(suite).rstrip("\n"), "yaml", copied_as="the suite"),
    ]


def configuration_block(study: Study, *, arm: str) -> list[Block]:
    """The arm alone as a suite file, for the page: its button copies it."""
    chosen = study.arm(arm)
    seeds = tuple(sorted(run.seed for run in study.reporting_runs(chosen)))
    alone = Suite(
        name=f"{study.suite_name}_one_arm",
        description="",
        experiment_type="custom",
        path=None,
        arms=(Arm(name=_name(chosen), settings=chosen.typed_settings, seeds=seeds),),
    )
    text = suite_yaml(alone).rstrip("\n")
    return [
        Shown(
            on_page=(
                Paragraph((f"{arm} alone, as a suite file:",)),
                CodeBlock(text, "yaml", copied_as=f"the configuration of {arm}"),
            )
        )
    ]


def suite_of(study: Study, *, design: Suite | None = None, question: Question | None = None) -> Suite:
    """The suite that reproduces the study: its design if that covers all runs, else one put together from the runs."""
    if design is not None and _asks_for(design, study):
        return design
    stated = question or Question()
    return Suite(
        name=study.suite_name,
        description="",
        experiment_type=study.experiment_type,
        path=None,
        arms=_made_of(study, stated),
        primary_metric=stated.primary_metric,
        margin=stated.margin,
        reference=stated.reference,
        given_tuning_seeds=stated.tuning_seeds or None,
        rungs=stated.rungs,
        metrics=stated.metrics,
    )


def _asks_for(design: Suite, study: Study) -> bool:
    """Whether the design covers the study. Runs started one by one share a suite name, and only the last keeps its design.

    Compares numbers and seeds, since an experiment type may change the settings of the file.
    """
    if any(arm.seeks_rate for arm in design.arms):
        # Searched rates are not in the design.
        designed = {
            canonical_json(arm.settings.model_dump(mode="json", exclude={"learning_rate"}))
            for arm in design.arms
        }
        found = {arm.configuration for arm in study.arms}
        # A time budget may end before every arm was tried.
        is_all = len(found) <= len(designed) if design.time_budget_hours else len(found) == len(designed)
    else:
        is_all = len(design.arms) == len(study.arms)
    seeds = {*all_seeds(arm.seeds for arm in design.arms), *design.tuning_seeds}
    ran = {result.seed for result in study.results}
    return design.experiment_type == study.experiment_type and is_all and ran <= seeds


def _made_of(study: Study, question: Question) -> tuple[Arm, ...]:
    """An arm for each of the study's; if rates were searched, one for each configuration, which searches again."""
    if not question.tuning_seeds:
        return tuple(
            Arm(name=_name(arm), settings=arm.typed_settings, seeds=tuple(r.seed for r in arm.results))
            for arm in study.arms
        )
    by_configuration = {arm.configuration: arm for arm in study.arms}
    return tuple(
        Arm(
            name=configuration_name(_name(arm), arm.typed_settings.learning_rate),
            settings=arm.typed_settings,
            seeds=question.seeds,
            seeks_rate=True,
        )
        for arm in by_configuration.values()
    )


def _name(arm: StudyArm) -> str:
    # "name #2" is this report's own, for a second configuration of that name; a suite file allows no "#".
    return arm.given_name.replace(" #", ".")


def fairness_blocks(findings: Sequence[LintFinding], *, num_arms: int, level: int) -> list[Block]:
    """The findings of the linter, the most severe first, or that there are none."""
    heading = Heading(level=level, text="Fairness of the comparison")
    checked = f"The linter checks these arms against {len(RULES)} rules of fair comparison"
    if not findings:
        return [heading, Paragraph((f"{checked} and found no breach of any.",))]
    text = f"{checked}. It found {counts_by_severity(findings)}."
    found = tuple(_found(finding, num_arms=num_arms) for finding in findings)
    why = Details(
        summary="Why this is unfair, and what to change",
        blocks=(Bullets(tuple(map(_why, findings))),),
        in_markdown=(Paragraph(("The HTML page beside this file says why, and what to change.",)),),
    )
    return [heading, Paragraph((text,)), Bullets(found), why]


def _found(finding: LintFinding, *, num_arms: int) -> Text:
    severity = "invalidates verdicts" if finding.severity == "invalidates" else finding.severity
    concerned = arms_in_words(finding.arms, num_arms=num_arms)
    return (
        Strong(f"{finding.code} {finding.title}"),
        f" ({severity}; {concerned}): ",
        *_with_code(f"{finding.found}."),
    )


def _why(finding: LintFinding) -> Text:
    text = f" Why: {finding.why} ({finding.source}). To change: {finding.change}."
    return (Strong(f"{finding.code} {finding.title}."), *_with_code(text))


def _with_code(text: str) -> Text:
    """The text with the parts between backticks as code."""
    return tuple(Code(part) if number % 2 else part for number, part in enumerate(text.split("`")))


def counts_by_severity(findings: Sequence[LintFinding]) -> str:
    """`1 that invalidates verdicts, 2 warnings and 1 note`."""
    counts = Counter(finding.severity for finding in findings)
    return listing(
        words.split("|")[counts[severity] != 1].format(n=counts[severity])
        for severity, words in _COUNTED.items()
        if counts[severity]
    )
