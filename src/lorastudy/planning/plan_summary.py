"""A plan in words: its size, the work after its first packs, predicted memory and time, and a page for a notebook.

A dry run, the first lines of a run and `StudyPlan._repr_html_` share these texts. Nothing here prints.
"""

import html
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorastudy.lint.case import arms_in_words
from lorastudy.planning.estimate import Estimator, PackEstimate
from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.predictions import Predictions
from lorastudy.planning.validation_cost import ValidationCost, total, validation_cost, without_points
from lorastudy.protocol.records import ArmStep, PackStep, TrivialScore, encode
from lorastudy.report.numbers import duration, listing, names, plural, size
from lorastudy.suite.base_model import is_hub_model
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.methods import PLAIN
from lorastudy.suite.question import rung_name
from lorastudy.suite.settings import Settings

if TYPE_CHECKING:
    from lorastudy.planning.study_plan import StudyPlan


#: The name of each memory term for a reader.
TERMS = {
    "base_weights": "base weights",
    "quantisation_constants": "quantisation constants",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer (AdamW)",
    "activations": "activations",
    "loss": "loss",
    "workspace": "workspace",
    "allocator_slack": "allocator slack",
}

#: Of full fine-tuning. The copy of the base is there on a CPU only.
TERMS_OF_FULL = TERMS | {
    "adapters": "optimizer's fp32 weights",
    "optimizer": "optimizer (AdamW) and copy of the base",
}


def size_line(plan: "StudyPlan") -> str:
    """The number of experiments in the plan, and how many are done. With `learning_rate: auto` the total is a range."""
    num_known, num_missing = len(plan.design.experiments), len(plan.missing)
    done = f"{num_known - num_missing} of them done; {num_missing} to run in {plural(len(plan.packs), 'pack')}{_to_score(plan)}"
    then = "" if _has_its_runs(plan) else " The finals follow, with as many seeds as the time left allows."
    if not plan.design.num_open:
        return f"{plural(num_known, 'experiment')}, {done}.{then} An experiment is an arm with one seed."
    least, most = _totals(plan)
    if then:
        return f"{least} to {most} experiments look for learning rates. {num_known} are known now, {done}.{then} An experiment is an arm with one seed."
    return (
        f"{least} to {most} experiments in all, most likely close to {least}: the search for a learning rate ends once the best one lies "
        f"between two others. {num_known} are known now, {done}. "
        "An experiment is an arm with one seed."
    )


def _has_its_runs(plan: "StudyPlan") -> bool:
    """Whether nothing but the search decides which experiments the suite has: it has no time budget, or its finals are decided."""
    return plan.suite.time_budget_hours is None or plan.design.finals is not None


def _totals(plan: "StudyPlan") -> tuple[int, int]:
    """The smallest and the largest number of experiments that the suite can have."""
    least, most = (len(plan.design.experiments) + more for more in plan.design.to_come)
    return least, most


def plan_notes(plan: "StudyPlan") -> list[str]:
    """All notes on a plan: on its files and rows, on hub models, and the `forecast`."""
    return [*plan.notes, *_on_the_hub(plan.design.of_every_arm), *forecast(plan)]


def forecast(plan: "StudyPlan") -> list[str]:
    """Notes on the work after the packs that are known now, and on the training time of everything."""
    return [
        *_search(plan),
        *_race(plan),
        *_balance(plan),
        *_time(plan),
        *_full_fine_tuning(plan),
        *_scores_on_the_way(plan),
        *_scoring(plan),
    ]


def _to_score(plan: "StudyPlan") -> str:
    """`; re-scores 30 adapters, about 2 min`; empty if none lacks a score."""
    if not plan.missing_scores:
        return ""
    num_adapters = sum(len(group.experiments) for group in plan.missing_scores)
    seconds = [group.seconds for group in plan.missing_scores]
    known = [value for value in seconds if value is not None]
    about = f", about {duration(sum(known))}" if len(known) == len(seconds) else ""
    return f"; re-scores {plural(num_adapters, 'adapter')}{about}"


def _scoring(plan: "StudyPlan") -> Iterator[str]:
    """The metrics that stored adapters lack, and those that are measured after training."""
    if plan.missing_scores:
        lacks = dict.fromkeys(metric.name for group in plan.missing_scores for metric in group.metrics)
        yield f"scores: stored adapters are scored by {listing(lacks)}; nothing is trained for it"
    if plan.suite.metrics and plan.missing:
        names = listing(metric.name for metric in plan.suite.metrics)
        yield f"scores: after training, each adapter is also scored by {names}"


def _search(plan: "StudyPlan") -> Iterator[str]:
    """The experiments that a search for learning rates adds."""
    if not plan.design.num_open:
        return
    least, most = _totals(plan)
    if not _has_its_runs(plan):
        yield _budget(plan)
        return
    looks, reports = ("looks", "reports") if plan.design.num_open == 1 else ("look", "report")
    yield (
        f"learning_rate auto: {plural(plan.design.num_open, 'arm')} {looks} for a rate on the held-out rows, with the seed "
        f"{plan.suite.tuning_seeds[0]}, each from the rate that its nearest neighbour found, and then {reports} at it: {least} "
        "experiments in all. While an arm's best rate is the lowest or the highest one tried, the search also tries the next "
        f"rate beyond it, so the total may be up to {most}"
    )


def _budget(plan: "StudyPlan") -> str:
    """What a suite with a time budget does with it."""
    return (
        f"time budget {duration(3600 * (plan.suite.time_budget_hours or 0))}: {plural(len(plan.suite.arms), 'arm')} look for learning "
        f"rates on the held-out rows, with the seed {plan.suite.tuning_seeds[0]}, in the first half. Arms that are clearly behind are then "
        "left out. The others run the finals with fresh seeds, as many as the time left allows, and only these report"
    )


def _race(plan: "StudyPlan") -> Iterator[str]:
    """When racing scores the arms, and what it stops."""
    if plan.suite.rungs:
        yield (
            f"racing: after {listing(map(rung_name, plan.suite.rungs))} of the steps all packs pause and are scored on the "
            "held-out rows; arms that are clearly behind are stopped there, never the reference at its best rate. "
            "docs/science.md says how often that was wrong"
        )


def _balance(plan: "StudyPlan") -> Iterator[str]:
    """The arms that move to another worker to balance the packs."""
    alone = frozenset() if plan.balance is None else plan.balance.alone
    moving = [plan.experiment_labels[each.id] for each in plan.missing if each.id in alone]
    if moving:
        yield f"the packs pause once and {names(moving)} moves to another worker, so that all workers finish together"


def _time(plan: "StudyPlan") -> Iterator[str]:
    """The sum of the packs' predicted times. Each experiment that may follow adds the mean time of an experiment."""
    packs, predicted = plan.packs, plan.predicted
    if not packs or not predicted.estimators:
        return
    seconds = [pack_seconds(predicted, pack) for pack in packs]
    known = [value for value in seconds if value is not None]
    if len(known) < len(seconds):
        file = str(plan.suite.path or "FILE")
        command = shlex.join(["lorastudy", "estimate", "--suite", file, "--calibrate"])
        part = (
            f"about {duration(sum(known))} for {len(known)} of {len(seconds)} packs; that of the others is "
            if known
            else ""
        )
        yield f"training time: {part}not known until a few steps are timed here: {command}"
        return
    total = sum(known)
    words = f"about {duration(total)} for these packs, one after another"
    if plan.design.num_open:
        of_one = total / sum(len(pack.experiments) for pack in packs)
        least, most = (total + of_one * more for more in plan.design.to_come)
        words += (
            f"; with the packs to come {duration(least)}, or up to {duration(most)} if the search goes on"
        )
    if plan.suite.rungs:
        words += "; less if racing stops arms"
    if plan.num_packs_at_once > 1:
        words += f". {plan.num_packs_at_once} packs train side by side"
    yield f"training time: {words}. Loading, measuring and scoring come on top"


def _full_fine_tuning(plan: "StudyPlan") -> Iterator[str]:
    """Memory and disk of full fine-tuning, also where its packs follow later. Both grow with the model."""
    to_run = (*plan.missing, *plan.design.waiting)
    full = (each for each in to_run if each.settings.arm_method.is_full)
    for experiment in {each.data_key: each for each in full}.values():
        estimator = plan.predicted.estimators.get(experiment.pack_key)
        if estimator is not None:
            yield _of_a_full_run(experiment, estimator, plan=plan)


def _of_a_full_run(experiment: Experiment, estimator: Estimator, *, plan: "StudyPlan") -> str:
    estimate = estimator.estimate([experiment])
    peak = estimate.prediction.terms.total
    budget = estimator.machine.budget_bytes(num_workers=plan.num_packs_at_once)
    room = f" (more than the {size(budget)} that this machine has for it)" if budget and peak > budget else ""
    models = adapters_bytes(estimate.saved_bytes[experiment.id], num_modules=0)
    checkpoints = checkpoint_bytes(estimate.num_trainable[experiment.id])
    return (
        f"full fine-tuning: a run is predicted to take {size(peak)} of memory{room}. It leaves {size(models)} on disk, its model and "
        f"a copy of it, and {size(checkpoints)} of checkpoints while it trains"
    )


def _scores_on_the_way(plan: "StudyPlan") -> Iterator[str]:
    """How often all packs score their validation rows before their end, and which arms have no point to be scored at."""
    cost = total(validation_of(plan, pack) for pack in plan.packs)
    if cost is not None:
        where = "" if len(plan.packs) == 1 else f" in {len(plan.packs)} packs"
        yield f"{cost}{where}"
    for pack in plan.packs:
        estimator = plan.predicted.estimator(pack)
        for arm, num_steps in [] if estimator is None else without_points(pack.experiments, estimator):
            yield (
                f"{arm} is scored at its end alone: its training takes {plural(num_steps, 'step')}, no more than its eval_steps"
            )


def validation_of(plan: "StudyPlan", pack: PlannedPack) -> ValidationCost | None:
    """What scoring on the way costs a pack of the plan; None without such scores or without a prediction."""
    estimator, estimate = plan.predicted.estimator(pack), plan.predicted.estimate(pack)
    if estimator is None or estimate is None:
        return None
    return validation_cost(pack.experiments, estimator, estimate=estimate, rungs=plan.suite.rungs)


def pack_seconds(predicted: Predictions, pack: PlannedPack) -> float | None:
    """Predicted seconds of a pack's training; None if no step was timed."""
    estimate = predicted.estimate(pack)
    return None if estimate is None else estimate.train_seconds


def _on_the_hub(experiments: Sequence[Experiment]) -> list[str]:
    return [
        f"base model {name}: read as an id on the hub; the run checks whether it exists there"
        for name in sorted({experiment.settings.base_model for experiment in experiments})
        if is_hub_model(name)
    ]


def finding_lines(plan: "StudyPlan") -> list[str]:
    """The linter's findings, a line each."""
    lines = [
        f"{finding.code} {finding.severity}: {finding.found} ({arms_in_words(finding.arms, num_arms=plan.num_arms)})"
        for finding in plan.findings_shown
    ]
    return [*lines, "`lorastudy check FILE` says why that is unfair and what to change"] if lines else []


def judgement_json(plan: "StudyPlan") -> dict[str, Any]:
    """What `check` found, as plain JSON values: findings, trivial predictors' scores, and adapted layers, by arm."""
    case = plan.case
    read = {} if case is None else {arm.name: case.facts_of(arm).rows for arm in case.arms}
    return {
        "suite_name": plan.suite.name,
        "labels": {} if case is None else dict(case.study.labels),
        "findings": [asdict(finding) for finding in plan.findings],
        "trivial": {
            arm: [_without_items(score) for rows in splits for score in rows.trivial]
            for arm, splits in read.items()
            if splits
        },
        "adapted": {name: asdict(arm) for name, arm in plan.predicted.adapted.arms.items()},
    }


def _without_items(score: TrivialScore) -> dict[str, Any]:
    """The score without its items, which are not needed before a run."""
    return {name: value for name, value in asdict(score).items() if name not in {"items", "weights"}}


def pack_line(estimate: PackEstimate, *, validation: ValidationCost | None = None) -> str:
    """A pack's engine, peak memory, time and disk space, on one line."""
    batch = estimate.rows.batch
    parts = [
        str(estimate.engine),
        (
            f"predicted peak {size(estimate.prediction.terms.total)}, in the {estimate.prediction.phase} of its largest "
            f"micro-batch ({batch.num_tokens} tokens an arm)"
        ),
    ]
    if estimate.step_seconds is not None:
        parts.append(f"{duration(estimate.step_seconds)} a step")
    if estimate.train_seconds is not None:
        parts.append(f"{duration(estimate.train_seconds)} of training")
    if validation is not None:
        parts.append(str(validation))
    parts.append(f"{size(disk_bytes(estimate))} of disk")
    return "; ".join(parts)


def disk_bytes(estimate: PackEstimate) -> int:
    """Bytes on disk of a pack's adapters or models, its checkpoints and records."""
    adapters = sum(
        adapters_bytes(num_bytes, num_modules=estimate.num_modules[key])
        for key, num_bytes in estimate.saved_bytes.items()
    )
    checkpoints = sum(checkpoint_bytes(p) for p in estimate.num_trainable.values())
    steps = estimate.rows.num_steps or 0
    return adapters + checkpoints + records_bytes(num_steps=steps, num_arms=len(estimate.num_trainable))


def experiment_line(experiment: Experiment) -> str:
    """The settings of an experiment that a reader looks for first, on one line."""
    settings = experiment.settings
    method = settings.arm_method
    adapter = f"r={settings.lora_rank} alpha={settings.lora_alpha_value:g} {_targets(settings)}"
    if not method.has_lora:
        adapter = "" if method.is_full else _targets(settings)
    what = " ".join(part for part in ["" if method == PLAIN else method.title, adapter] if part)
    return f"{what} lr={settings.learning_rate:g} {settings.quantization} seed={experiment.seed} {_length(settings)}"


def _targets(settings: Settings) -> str:
    targets = settings.target_modules
    return targets if isinstance(targets, str) else ",".join(targets)


def _length(settings: Settings) -> str:
    return (
        f"{settings.max_steps} steps" if settings.max_steps else f"{settings.num_train_epochs or 1:g} epochs"
    )


def plan_html(plan: "StudyPlan") -> str:
    """The plan for a notebook: its size, a table of arms, a table of packs with memory and time, notes and findings."""
    lines = [*(f"note: {note}" for note in plan_notes(plan)), *finding_lines(plan)]
    return "".join(
        [
            f"<h4>{html.escape(plan.suite.name)}</h4><p>{html.escape(size_line(plan))}</p>",
            _table(
                (
                    "arm",
                    "method",
                    "rank",
                    "alpha",
                    "modules",
                    "learning rate",
                    "base",
                    "length",
                    "seeds",
                    "to run",
                ),
                _arm_rows(plan),
            ),
            _table(("pack", "experiments", "engine", "predicted peak", "training time"), _pack_rows(plan)),
            "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>" if lines else "",
        ]
    )


def _arm_rows(plan: "StudyPlan") -> Iterator[tuple[str, ...]]:
    by_arm: dict[str, list[Experiment]] = {}
    for experiment in plan.design.experiments:
        by_arm.setdefault(experiment.arm, []).append(experiment)
    missing = {experiment.id for experiment in plan.missing}
    for arm, experiments in by_arm.items():
        settings = experiments[0].settings
        yield (
            plan.labels[arm],
            settings.arm_method.title,
            *_adapter_cells(settings),
            f"{settings.learning_rate:g}",
            settings.quantization,
            _length(settings),
            ", ".join(str(experiment.seed) for experiment in experiments),
            str(sum(experiment.id in missing for experiment in experiments)),
        )


def _adapter_cells(settings: Settings) -> tuple[str, str, str]:
    """Rank, alpha and modules; full fine-tuning has none, and PEFT's other adapters have no such rank."""
    if not settings.arm_method.has_lora:
        return ("", "", "all weights" if settings.arm_method.is_full else _targets(settings))
    return str(settings.lora_rank), f"{settings.lora_alpha_value:g}", _targets(settings)


def _pack_rows(plan: "StudyPlan") -> Iterator[tuple[str, ...]]:
    for number, pack in enumerate(plan.packs, start=1):
        estimate = plan.predicted.estimate(pack)
        seconds = None if estimate is None else estimate.train_seconds
        yield (
            str(number),
            str(len(pack.experiments)),
            "not known" if estimate is None else str(estimate.engine),
            "not known" if estimate is None else size(estimate.prediction.terms.total),
            "not known" if seconds is None else duration(seconds),
        )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    if not cells:
        return ""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>"


FP32_BYTES = 4

#: safetensors' header has a line of about this length for each tensor (name, type, shape, offsets).
HEADER_BYTES_PER_TENSOR = 150

#: A checkpoint holds the trained weights in fp32 and both moments of AdamW; two are kept.
TENSORS_IN_A_CHECKPOINT, CHECKPOINTS_KEPT = 3, 2

#: Adapters stay in the run folder, and a copy of each goes to the output folder.
COPIES_OF_AN_ADAPTER = 2


def adapter_file_bytes(weight_bytes: int, *, num_modules: int) -> int:
    """The bytes of the weights, plus the header lines of two tensors for each adapted module."""
    return weight_bytes + 2 * num_modules * HEADER_BYTES_PER_TENSOR


def adapters_bytes(weight_bytes: int, *, num_modules: int) -> int:
    """Bytes of an experiment's adapter, or of its model after full fine-tuning, and of the copy."""
    return COPIES_OF_AN_ADAPTER * adapter_file_bytes(weight_bytes, num_modules=num_modules)


def checkpoint_bytes(num_trainable_parameters: int) -> int:
    """Bytes of an experiment's share in the checkpoints that are kept while it trains."""
    return CHECKPOINTS_KEPT * TENSORS_IN_A_CHECKPOINT * FP32_BYTES * num_trainable_parameters


def records_bytes(*, num_steps: int, num_arms: int) -> int:
    """Bytes of the records of a pack's steps: one line a step, each as long as a line with ordinary numbers."""
    arm = ArmStep(experiment_id="exp-0123456789abcdef", loss=1.2345678901234567, learning_rate=1.2345678901234567e-4,
                  grad_norm=0.12345678901234567)  # fmt: skip
    line = encode(
        PackStep(
            step=num_steps, num_steps=num_steps, num_tokens=1234, num_completion_tokens=1234,
            seconds=0.1234567890123456, arms=(arm,) * num_arms,
        )
    )  # fmt: skip
    return num_steps * (len(line) + 1)
