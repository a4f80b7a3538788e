"""`lorastudy recommend`: the configuration for a model and a memory, and what that is known from."""

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
    from lorastudy.cli.asked import Asked
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.memory_budget import Room
    from lorastudy.cli.recommending import Plans
    from lorastudy.planning.literature import LiteratureRule
    from lorastudy.recommend.answer import Candidate, Recommendation

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
    from lorastudy.cli.asked import named
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.memory_budget import room_here, room_of
    from lorastudy.cli.recommending import Plans, machine_of
    from lorastudy.executors.process import JobWorker
    from lorastudy.planning.answers import Answers

    _refuse(hours=hours, margin=margin)
    room = None if vram is None else room_of(vram)
    given = {
        "base_model": base_model,
        "dataset_path": dataset,
        "quantization": quantization,
        "max_seq_length": max_seq_length,
        "trust_remote_code": trust_remote_code or None,
    }
    about = named(
        {key: value for key, value in given.items() if value is not None},
        file=suite,
        suite_name=suite_name,
        database=database,
    )
    with JobWorker() as worker:
        answers = Answers(worker.do)
        room = room or room_here(machine_of(about.base, answers))
        asked = about.asked(budget_bytes=room.budget_bytes, margin=margin)
        plans = Plans(answers, asked)
        plans.check_data()
        answer = _answer(plans, asked, database=database, hours=hours)
        if answer is None:
            raise StudyError(_nothing_fits(plans, asked, room=room, hours=hours))
        if as_json:
            say(json.dumps(_as_json(answer, plans, asked=asked), indent=1))
        else:
            _show(PlainConsole(), answer, plans=plans, asked=asked, room=room)


def _answer(plans: "Plans", asked: "Asked", *, database: str, hours: float | None) -> "Recommendation | None":
    """From the store where it has evidence, else from the literature; None where nothing fits."""
    from lorastudy.cli.recommending import literature_candidates, silent_suites, stored_evidence
    from lorastudy.recommend.answer import recommend as recommended
    from lorastudy.store import ExperimentTracker

    limits: dict[str, Any] = {
        "budget_bytes": asked.budget_bytes,
        "max_seconds": None if hours is None else 3600 * hours,
    }
    if "://" not in database and not Path(database).is_file() and database == DATABASE:
        return recommended((), literature_candidates(plans, asked), **limits)
    with ExperimentTracker(database) as tracker:
        evidence = list(stored_evidence(tracker, plans, asked=asked))
        silent = silent_suites(tracker, asked)
    measured = recommended(evidence, (), **limits)
    if measured is not None:
        return measured
    published = recommended(evidence, literature_candidates(plans, asked), **limits)
    return published and dataclasses.replace(published, left_out=(*published.left_out, *silent))


def _refuse(*, hours: float | None, margin: float | None) -> None:
    for option, value in (("--hours", hours), ("--margin", margin)):
        if value is not None and not 0 < value < float("inf"):
            raise StudyError(f"{option}: {value:g}: give a number greater than 0")


def _nothing_fits(plans: "Plans", asked: "Asked", *, room: "Room", hours: float | None) -> str:
    from lorastudy.report.numbers import size

    least, memory = plans.smallest, room.words
    if least is None:
        held = plans.least_weights_bytes
        return (
            f"--vram: {memory}: nothing fits. The weights of {asked.base.base_model} alone take {size(held)} in "
            f"{plans.least_precision}. "
            f"What would fit: more than {room.needed(held)} of memory, or a smaller model"
        )
    if least.peak_bytes <= asked.budget_bytes:
        return (
            f"--hours: {hours:g}: everything that fits {memory} is known to take longer. "
            "Give more hours, or fewer rows or steps"
        )
    settings = least.settings
    return (
        f"--vram: {memory}: nothing fits. The least that was tried (rank {settings.lora_rank} on {settings.target_modules}, "
        f"{settings.quantization}, {settings.per_device_train_batch_size} row(s) of {settings.max_seq_length} tokens, "
        f"with recomputation) is predicted to take {size(least.peak_bytes)}. What would fit: "
        f"{room.needed(least.peak_bytes)} or more of memory, a smaller model, or a smaller --max-seq-length"
    )


def _as_json(answer: "Recommendation", plans: "Plans", *, asked: "Asked") -> dict[str, Any]:
    """All of it as plain JSON values."""
    from lorastudy.report.findings.recommendation import because

    runner_up = answer.runner_up
    return {
        "grade": answer.grade,
        "recommended": answer.is_recommended,
        "decision": None if answer.decision is None else dataclasses.asdict(answer.decision),
        "name": answer.name,
        **_candidate_json(answer.candidate),
        "budget_bytes": asked.budget_bytes,
        "device": plans.device,
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
        "rules": {key: dataclasses.asdict(rule) for key, rule in _rules(answer, asked).items()},
    }


def _rules(answer: "Recommendation", asked: "Asked") -> "Mapping[str, LiteratureRule]":
    """The published rules that were followed; a precision that was asked for followed none."""
    from lorastudy.planning.literature import RULES

    if answer.grade != "literature only":
        return {}
    return {
        key: rule for key, rule in RULES.items() if key != "precision" or "quantization" not in asked.fixed
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
    console: "PlainConsole", answer: "Recommendation", *, plans: "Plans", asked: "Asked", room: "Room"
) -> None:
    """As text for people."""
    from lorastudy.report.findings.recommendation import because
    from lorastudy.report.numbers import size

    title = "recommended" if answer.is_recommended else "to start with"
    console.print(f"{title}: {answer.name}   [{answer.grade}]")
    console.print(f"for: {_subject(asked)}\n")
    for key, value in _settings_shown(answer.candidate).items():
        console.print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    _show_list(console, "because", lines=because(answer))
    _show_list(console, "expected", lines=(_expected(answer),))
    _show_needs(console, answer.candidate, room=room, device=plans.device)
    up = answer.runner_up
    if up is not None:
        _show_list(console, "runner-up", lines=(f"{up.name}, {size(up.candidate.peak_bytes)}", up.standing))
    _show_list(console, "cannot be told", lines=answer.open)
    _show_list(console, "mind", lines=answer.caveats)
    _show_list(console, "other studies", lines=answer.other_studies)
    _show_list(console, "studies left out", lines=answer.left_out)
    followed = _rules(answer, asked).values()
    _show_list(console, "rules", lines=[f"{rule.says} ({rule.source})" for rule in followed])


def _subject(asked: "Asked") -> str:
    """What was asked about, in words."""
    units = {"quantization": "the base in {}", "max_seq_length": "rows of {} tokens"}
    fixed = (units[key].format(value) for key, value in asked.fixed.items())
    data = [asked.base.dataset_path] if asked.has_data else []
    from_suite = [f"from the suite {asked.suite_name} alone"] if asked.is_only else []
    return ", ".join([asked.base.base_model, *data, *fixed, *from_suite])


def _show_list(console: "PlainConsole", title: str, *, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"\n{title}:")
    for line in lines:
        console.print(f"  {line}")


def _show_needs(console: "PlainConsole", candidate: "Candidate", *, room: "Room", device: str) -> None:
    from lorastudy.cli.estimating import TERMS
    from lorastudy.report.numbers import count, duration, size

    console.print(
        f"\nneeds: {size(candidate.peak_bytes)} of {room.words} at the peak, predicted for rows of the full length"
    )
    for name, num_bytes in candidate.terms_bytes.items():
        if num_bytes:
            console.print(f"  {TERMS[name]}: {size(num_bytes)}")
    console.print(f"  ({room.left_free()}; counted on a {device})")
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
