"""`lorastudy recommend`: the configuration for a model and a memory, and the evidence for it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.options import DATABASE, Database
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.planning.estimate import MemoryBudget
    from lorastudy.planning.literature import LiteratureRule
    from lorastudy.planning.recommendation import CandidateFinder
    from lorastudy.planning.recommendation_request import RecommendationRequest
    from lorastudy.recommend.recommendation import Candidate, Recommendation

#: The settings of a configuration that a user copies into a suite file.
SHOWN_SETTINGS = (
    "lora_rank", "lora_alpha", "use_rslora", "target_modules", "learning_rate", "quantization",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "per_device_train_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "max_seq_length", "lr_scheduler_type", "max_steps",
    "num_train_epochs",
)  # fmt: skip


def recommend(
    suite: Annotated[
        Path | None,
        typer.Argument(
            help="Suite file to recommend for: fills in base model, data, precision and length where no option does."
        ),
    ] = None,
    suite_name: Annotated[
        str | None, typer.Option(help="Suite of the store to recommend from, instead of a file.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Folder with a config.json, a model fetched from the hub before, or `lab`."),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(help="Memory it has to fit, such as 8GB or 80GiB; by default this machine's."),
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Time it has to fit, where that is known.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Training rows; without it, a study answers for its own data.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Loss of quality that would not matter, in the metric's unit; not set by the results."
        ),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="4bit, 8bit, fp16, bf16 or fp32; without it, whatever fits.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Tokens per row; without it those of the study, else 512.")
    ] = None,
    database: Database = DATABASE,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model folder run its own code.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend a configuration that fits, with what it should reach and need, and how that is known."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.executors.process import JobWorker
    from lorastudy.planning.answers import Answers
    from lorastudy.planning.estimate import budget_here, budget_of
    from lorastudy.planning.recommendation import CandidateFinder, machine_of
    from lorastudy.planning.recommendation_request import read_request

    _refuse(hours=hours, margin=margin)
    budget = None if vram is None else budget_of(vram)
    given = {
        "base_model": base_model,
        "dataset_path": dataset,
        "quantization": quantization,
        "max_seq_length": max_seq_length,
        "trust_remote_code": trust_remote_code or None,
    }
    about = read_request(
        {key: value for key, value in given.items() if value is not None},
        file=suite,
        suite_name=suite_name,
        database=database,
    )
    with JobWorker() as worker:
        answers = Answers(worker.do)
        budget = budget or budget_here(machine_of(about.base, answers))
        request = about.request(budget_bytes=budget.budget_bytes, margin=margin)
        finder = CandidateFinder(answers, request)
        finder.check_data()
        answer = _recommendation(finder, request, database=database, hours=hours)
        if answer is None:
            raise StudyError(_nothing_fits(finder, request, budget=budget, hours=hours))
        if as_json:
            say(json.dumps(_as_json(answer, finder, request=request), indent=1))
        else:
            _show(PlainConsole(), answer, finder=finder, request=request, budget=budget)


def _recommendation(
    finder: "CandidateFinder", request: "RecommendationRequest", *, database: str, hours: float | None
) -> "Recommendation | None":
    """The recommendation from the store, if there is one. A default store that does not exist yet has no evidence."""
    from lorastudy.planning.done import is_new
    from lorastudy.planning.recommendation import recommendation_for
    from lorastudy.store import ExperimentTracker

    max_seconds = None if hours is None else 3600 * hours
    if database == DATABASE and is_new(database):
        return recommendation_for(finder, request, tracker=None, max_seconds=max_seconds)
    with ExperimentTracker(database) as tracker:
        return recommendation_for(finder, request, tracker=tracker, max_seconds=max_seconds)


def _refuse(*, hours: float | None, margin: float | None) -> None:
    for option, value in (("--hours", hours), ("--margin", margin)):
        if value is not None and not 0 < value < float("inf"):
            raise StudyError(f"{option}: {value:g}: give a number greater than 0")


def _nothing_fits(
    finder: "CandidateFinder",
    request: "RecommendationRequest",
    *,
    budget: "MemoryBudget",
    hours: float | None,
) -> str:
    from lorastudy.report.numbers import size

    least, memory = finder.smallest, budget.words
    if least is None:
        held = finder.least_weights_bytes
        return (
            f"--vram: {memory}: nothing fits. The weights of {request.base.base_model} alone take {size(held)} in "
            f"{finder.least_precision}. "
            f"What would fit: more than {budget.needed(held)} of memory, or a smaller model"
        )
    if least.peak_bytes <= request.budget_bytes:
        return (
            f"--hours: {hours:g}: everything that fits {memory} is known to take longer. "
            "Give more hours, or fewer rows or steps"
        )
    settings = least.settings
    return (
        f"--vram: {memory}: nothing fits. The least that was tried (rank {settings.lora_rank} on {settings.target_modules}, "
        f"{settings.quantization}, {settings.per_device_train_batch_size} row(s) of {settings.max_seq_length} tokens, "
        f"with recomputation) is predicted to take {size(least.peak_bytes)}. What would fit: "
        f"{budget.needed(least.peak_bytes)} or more of memory, a smaller model, or a smaller --max-seq-length"
    )


def _as_json(
    answer: "Recommendation", finder: "CandidateFinder", *, request: "RecommendationRequest"
) -> dict[str, Any]:
    """Everything as plain JSON values."""
    from lorastudy.report.findings.recommendation import because

    runner_up = answer.runner_up
    return {
        "grade": answer.grade,
        "recommended": answer.is_recommended,
        "decision": None if answer.decision is None else dataclasses.asdict(answer.decision),
        "name": answer.name,
        **_candidate_json(answer.candidate),
        "budget_bytes": request.budget_bytes,
        "device": finder.device,
        "because": list(because(answer)),
        "expected": None if answer.expectation is None else dataclasses.asdict(answer.expectation),
        "runner_up": runner_up
        and {
            "name": runner_up.name,
            "standing": runner_up.standing,
            **_candidate_json(runner_up.candidate),
        },
        "open": list(answer.open),
        "caveats": list(answer.caveats),
        "other_studies": list(answer.other_studies),
        "left_out": list(answer.left_out),
        "rules": {key: dataclasses.asdict(rule) for key, rule in _rules(answer, request).items()},
    }


def _rules(answer: "Recommendation", request: "RecommendationRequest") -> "Mapping[str, LiteratureRule]":
    """The published rules that were followed. A precision that the user chose follows no rule."""
    from lorastudy.planning.literature import RULES

    if answer.grade != "literature only":
        return {}
    return {
        key: rule for key, rule in RULES.items() if key != "precision" or "quantization" not in request.fixed
    }


def _candidate_json(candidate: "Candidate") -> dict[str, Any]:
    return {
        "settings": _settings_shown(candidate),
        "peak_bytes": candidate.peak_bytes,
        "terms_bytes": dict(candidate.terms_bytes),
        "num_trainable_parameters": candidate.num_trainable_parameters,
        "train_seconds": candidate.train_seconds,
        "time_from": candidate.time_from,
    }


def _settings_shown(candidate: "Candidate") -> dict[str, Any]:
    values = candidate.settings.model_dump(mode="json")
    skipped = (
        set() if values["quantization"] == "4bit" else {k for k in SHOWN_SETTINGS if k.startswith("bnb")}
    )
    return {key: values[key] for key in SHOWN_SETTINGS if key not in skipped and values[key] is not None}


def _show(
    console: "PlainConsole",
    answer: "Recommendation",
    *,
    finder: "CandidateFinder",
    request: "RecommendationRequest",
    budget: "MemoryBudget",
) -> None:
    """Print everything as text."""
    from lorastudy.report.findings.recommendation import because
    from lorastudy.report.numbers import size

    title = "recommended" if answer.is_recommended else "to start with"
    console.print(f"{title}: {answer.name}   [{answer.grade}]")
    console.print(f"for: {_subject(request)}\n")
    for key, value in _settings_shown(answer.candidate).items():
        console.print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    _show_list(console, "because", lines=because(answer))
    _show_list(console, "expected", lines=(_expected(answer),))
    _show_needs(console, answer.candidate, budget=budget, device=finder.device)
    up = answer.runner_up
    if up is not None:
        _show_list(console, "runner-up", lines=(f"{up.name}, {size(up.candidate.peak_bytes)}", up.standing))
    _show_list(console, "cannot be told", lines=answer.open)
    _show_list(console, "mind", lines=answer.caveats)
    _show_list(console, "other studies", lines=answer.other_studies)
    _show_list(console, "studies left out", lines=answer.left_out)
    followed = _rules(answer, request).values()
    _show_list(console, "rules", lines=[f"{rule.says} ({rule.source})" for rule in followed])


def _subject(request: "RecommendationRequest") -> str:
    """The request in words."""
    units = {"quantization": "the base in {}", "max_seq_length": "rows of {} tokens"}
    fixed = (units[key].format(value) for key, value in request.fixed.items())
    data = [request.base.dataset_path] if request.has_data else []
    from_suite = [f"from the suite {request.suite_name} alone"] if request.is_only else []
    return ", ".join([request.base.base_model, *data, *fixed, *from_suite])


def _show_list(console: "PlainConsole", title: str, *, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"\n{title}:")
    for line in lines:
        console.print(f"  {line}")


def _show_needs(
    console: "PlainConsole", candidate: "Candidate", *, budget: "MemoryBudget", device: str
) -> None:
    from lorastudy.planning.plan_summary import TERMS
    from lorastudy.report.numbers import count, duration, size

    console.print(
        f"\nneeds: {size(candidate.peak_bytes)} of {budget.words} at the peak, predicted for rows of the full length"
    )
    for name, num_bytes in candidate.terms_bytes.items():
        if num_bytes:
            console.print(f"  {TERMS[name]}: {size(num_bytes)}")
    console.print(f"  ({budget.left_free()}; counted on a {device})")
    console.print(f"  trainable parameters: {count(candidate.num_trainable_parameters)}")
    if candidate.train_seconds is None:
        console.print(
            "  time: not known; `lorastudy estimate --calibrate` times a few steps of a configuration"
        )
    else:
        console.print(f"  training time: {duration(candidate.train_seconds)}, from {candidate.time_from}")


def _expected(answer: "Recommendation") -> str:
    from lorastudy.report.numbers import decimals_for, interval, number

    known = answer.expectation
    if known is None:
        return "not known for this model and data; a study would tell: see `lorastudy suite`"
    spread = None if known.interval is None else (known.interval[1] - known.interval[0]) / 4
    decimals = decimals_for([spread])
    where = (
        "" if answer.grade.startswith("measured here") else ", where it was measured and not as recommended"
    )
    return (
        f"{known.metric} {number(known.mean, decimals)} {known.unit} on {known.held_out}{where}; one "
        f"more seed within {interval(known.interval, decimals)} (95 %, from {known.num_seeds} seeds)"
    )
