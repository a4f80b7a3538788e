"""`lorastudy recommend`: the configuration for a model and a memory, and the evidence for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import (
    MEMORY_TO_FIT,
    PLANNED_MODEL,
    QUANTIZATIONS,
    AsJson,
    Database,
    TrustRemoteCode,
    readable_store,
)
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.planning.estimate import MemoryBudget
    from lorastudy.planning.recommendation import AnsweredRequest
    from lorastudy.planning.recommendation_request import RecommendationRequest
    from lorastudy.recommend.recommendation import Candidate, Recommendation


def recommend(
    suite: Annotated[
        Path | None,
        typer.Argument(
            help="Suite file to recommend for. It gives base model, data, precision and length unless an option does."
        ),
    ] = None,
    suite_name: Annotated[
        str | None, typer.Option(help="Suite of the store to recommend from, instead of a file.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help=PLANNED_MODEL),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(help=f"{MEMORY_TO_FIT}; by default this machine's."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(
            help="Longest training time in hours. Ignored for configurations whose time is not known."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Training rows; by default those of the study that answers.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Loss of quality that does not matter to you, in the metric's unit. Choose it before you see results."
        ),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help=f"{QUANTIZATIONS}; without it, whatever fits.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Tokens per row; without it those of the study, else 512.")
    ] = None,
    database: Database = DATABASE,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Recommend a configuration that fits, with its expected score, its cost and the evidence for it."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.planning.estimate import budget_here, budget_of
    from lorastudy.planning.predictions import worker_answers
    from lorastudy.planning.recommendation import answer_request, machine_of
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
    with worker_answers() as answers, readable_store(database) as tracker:
        budget = budget or budget_here(machine_of(about.base, answers))
        request = about.request(budget_bytes=budget.budget_bytes, margin=margin)
        answered = answer_request(request, answers, tracker=tracker, budget=budget, hours=hours)
    if as_json:
        say(json.dumps(answered.to_json(), indent=1))
    else:
        _show(PlainConsole(), answered, budget=budget)


def _refuse(*, hours: float | None, margin: float | None) -> None:
    for option, value in (("--hours", hours), ("--margin", margin)):
        if value is not None and not 0 < value < float("inf"):
            raise StudyError(f"{option}: {value:g}: give a number greater than 0")


def _show(console: "PlainConsole", answered: "AnsweredRequest", *, budget: "MemoryBudget") -> None:
    """Print everything as text."""
    from lorastudy.planning.recommendation_request import shown_settings
    from lorastudy.report.numbers import size

    answer = answered.recommendation
    title = "recommended" if answer.is_recommended else "to start with"
    console.print(f"{title}: {answer.name}   [{answer.grade}]")
    console.print(f"for: {_subject(answered.request)}\n")
    for key, value in shown_settings(answer.candidate.settings).items():
        console.print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    if answer.analysis is not None:
        console.print(f"\nthe study that answers: {answer.analysis.study.suite_name}")
    _show_list(
        console, "changed from the suite file", lines=answered.request.unlike_suite(answer.candidate.settings)
    )
    _show_list(console, "because", lines=answered.because)
    _show_list(console, "expected", lines=(_expected(answer),))
    _show_needs(console, answer.candidate, budget=budget, device=answered.device)
    up = answer.runner_up
    if up is not None:
        _show_list(console, "runner-up", lines=(f"{up.name}, {size(up.candidate.peak_bytes)}", up.standing))
    _show_list(console, "undecided", lines=answer.open)
    _show_list(console, "keep in mind", lines=answer.caveats)
    _show_list(console, "other studies", lines=answer.other_studies)
    _show_list(console, "studies left out", lines=answer.left_out)
    followed = answered.rules.values()
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
    from lorastudy.planning.plan_summary import TERMS, TERMS_OF_FULL
    from lorastudy.report.numbers import count, duration, size

    console.print(
        f"\nneeds: {size(candidate.peak_bytes)} of {budget.words} at the peak, predicted for rows of the full length"
    )
    words = TERMS_OF_FULL if candidate.settings.arm_method.is_full else TERMS
    for name, num_bytes in candidate.terms_bytes.items():
        if num_bytes:
            console.print(f"  {words[name]}: {size(num_bytes)}")
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
        return "not known for this model and data; `lorastudy suite` would measure it"
    spread = None if known.interval is None else (known.interval[1] - known.interval[0]) / 4
    decimals = decimals_for([spread])
    where = (
        "" if answer.grade.startswith("measured here") else ", measured there and not with this configuration"
    )
    return (
        f"{known.metric} {number(known.mean, decimals)} {known.unit} on {known.held_out}{where}; one "
        f"more seed within {interval(known.interval, decimals)} (95 %, from {known.num_seeds} seeds)"
    )
