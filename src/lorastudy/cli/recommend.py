"""`lorastudy recommend`: the configuration for a model and a memory, and what that is known from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.estimate import memory_size
from lorastudy.cli.options import DATABASE, Database
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError

if TYPE_CHECKING:
    from lorastudy.analysis.recommendation import Candidate, Recommendation
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.recommending import Asked, Plans

#: The settings of a configuration that a user copies into a suite file.
SHOWN_SETTINGS = (
    "lora_rank", "lora_alpha", "use_rslora", "target_modules", "learning_rate", "quantization",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "per_device_train_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "max_seq_length", "lr_scheduler_type", "max_steps",
    "num_train_epochs",
)  # fmt: skip


def recommend(
    base_model: Annotated[
        str, typer.Option(help="Folder with a config.json, a model fetched from the hub before, or `lab`.")
    ],
    vram: Annotated[str, typer.Option(help="Memory it has to fit, such as 8GB or 80GiB.")],
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
    max_seq_length: Annotated[int, typer.Option(help="Tokens per row, where no study says.")] = 512,
    database: Database = DATABASE,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model folder run its own code.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend a configuration that fits, with what it should reach and need, and how that is known."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.estimate import settings_of
    from lorastudy.cli.recommending import Asked, Plans
    from lorastudy.executors.job_worker import JobWorker
    from lorastudy.planner.answers import Answers
    from lorastudy.planner.estimate import within_margin

    _refuse(hours=hours, margin=margin)
    settings = settings_of(
        base_model=base_model, max_seq_length=max_seq_length, trust_remote_code=trust_remote_code,
        **({} if dataset is None else {"dataset_path": dataset}),
    )  # fmt: skip
    asked = Asked(
        base=settings,
        has_data=dataset is not None,
        budget_bytes=within_margin(memory_size(vram)),
        margin=margin,
    )
    with JobWorker() as worker:
        plans = Plans(Answers(worker.do), asked)
        plans.check_data()
        answer = _answer(plans, asked, database=database, hours=hours)
        if answer is None:
            raise StudyError(_nothing_fits(plans, asked, vram=vram, hours=hours))
        if as_json:
            say(json.dumps(_as_json(answer, plans, asked=asked), indent=1))
        else:
            _show(PlainConsole(), answer, plans=plans, vram=vram)


def _answer(plans: "Plans", asked: "Asked", *, database: str, hours: float | None) -> "Recommendation | None":
    """From the store where it has evidence, else from the literature; None where nothing fits."""
    from lorastudy.analysis.recommendation import recommend as recommended
    from lorastudy.cli.recommending import literature_candidates, stored_evidence
    from lorastudy.tracker import ExperimentTracker

    limits: dict[str, Any] = {
        "budget_bytes": asked.budget_bytes,
        "max_seconds": None if hours is None else 3600 * hours,
    }
    if "://" not in database and not Path(database).is_file() and database == DATABASE:
        return recommended((), literature_candidates(plans, asked), **limits)
    with ExperimentTracker(database) as tracker:
        evidence = list(stored_evidence(tracker, plans, asked=asked))
    return recommended(evidence, (), **limits) or recommended(
        evidence, literature_candidates(plans, asked), **limits
    )


def _refuse(*, hours: float | None, margin: float | None) -> None:
    for option, value in (("--hours", hours), ("--margin", margin)):
        if value is not None and not 0 < value < float("inf"):
            raise StudyError(f"{option}: {value:g}: give a number greater than 0")


def _nothing_fits(plans: "Plans", asked: "Asked", *, vram: str, hours: float | None) -> str:
    from lorastudy.planner.estimate import MARGIN
    from lorastudy.report.numbers import size

    least = plans.smallest
    if least is None:
        held = plans.least_weights_bytes
        return (
            f"--vram: {vram}: nothing fits. The weights of {asked.base.base_model} alone take {size(held)} in 4 bits. "
            f"What would fit: more than {size(held / (1 - MARGIN))} of memory, or a smaller model"
        )
    if least.peak_bytes <= asked.budget_bytes:
        return (
            f"--hours: {hours:g}: everything that fits {vram} is known to take longer. "
            "Give more hours, or fewer rows or steps"
        )
    settings = least.settings
    return (
        f"--vram: {vram}: nothing fits. The least that was tried (rank {settings.lora_rank} on {settings.target_modules}, "
        f"{settings.quantization}, {settings.per_device_train_batch_size} row(s) of {settings.max_seq_length} tokens, "
        f"with recomputation) is predicted to take {size(least.peak_bytes)}. What would fit: "
        f"{size(least.peak_bytes / (1 - MARGIN))} or more of memory, a smaller model, or a smaller --max-seq-length"
    )


def _as_json(answer: "Recommendation", plans: "Plans", *, asked: "Asked") -> dict[str, Any]:
    """All of it as plain JSON values."""
    import dataclasses

    from lorastudy.planner.literature import RULES

    runner_up = answer.runner_up
    is_literature = answer.grade == "literature only"
    return {
        "grade": answer.grade,
        "untuned": answer.untuned,
        "undecided": answer.undecided,
        "name": answer.name,
        **_candidate_json(answer.candidate),
        "budget_bytes": asked.budget_bytes,
        "device": plans.device,
        "because": list(answer.because),
        "expected": None if answer.expectation is None else dataclasses.asdict(answer.expectation),
        "runner_up": runner_up
        and {
            "name": runner_up.name,
            "standing": runner_up.standing,
            **_candidate_json(runner_up.candidate),
        },
        "open": list(answer.open),
        "caveats": list(answer.caveats),
        "left_out": list(answer.left_out),
        "rules": {key: dataclasses.asdict(rule) for key, rule in RULES.items()} if is_literature else {},
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


def _show(console: "PlainConsole", answer: "Recommendation", *, plans: "Plans", vram: str) -> None:
    """As text for people."""
    from lorastudy.planner.literature import RULES
    from lorastudy.report.numbers import size

    title = "to start with" if answer.untuned or answer.undecided else "recommended"
    console.print(f"{title}: {answer.name}   [{answer.grade}]\n")
    for key, value in _settings_shown(answer.candidate).items():
        console.print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    _show_list(console, "because", lines=answer.because)
    _show_list(console, "expected", lines=(_expected(answer),))
    _show_needs(console, answer.candidate, vram=vram, device=plans.device)
    up = answer.runner_up
    if up is not None:
        _show_list(console, "runner-up", lines=(f"{up.name}, {size(up.candidate.peak_bytes)}", up.standing))
    _show_list(console, "cannot be told", lines=answer.open)
    _show_list(console, "mind", lines=answer.caveats)
    _show_list(console, "studies left out", lines=answer.left_out)
    if answer.grade == "literature only":
        _show_list(console, "rules", lines=[f"{rule.says} ({rule.source})" for rule in RULES.values()])


def _show_list(console: "PlainConsole", title: str, *, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"\n{title}:")
    for line in lines:
        console.print(f"  {line}")


def _show_needs(console: "PlainConsole", candidate: "Candidate", *, vram: str, device: str) -> None:
    from lorastudy.cli.estimating import TERMS, margin_words
    from lorastudy.report.numbers import count, duration, size

    console.print(
        f"\nneeds: {size(candidate.peak_bytes)} of {vram} at the peak, predicted for rows of the full length"
    )
    for name, num_bytes in candidate.terms_bytes.items():
        if num_bytes:
            console.print(f"  {TERMS[name]}: {size(num_bytes)}")
    console.print(
        f"  ({margin_words()} for the device's context and the prediction's error; counted on a {device})"
    )
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
        f"{known.metric} {number(known.mean, decimals)} {known.unit} on the held-out rows of {known.data}{where}; one "
        f"more seed within {interval(known.interval, decimals)} (95 %, from {known.num_seeds} seeds)"
    )
