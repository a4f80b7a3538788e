"""`lorastudy estimate`: memory, time and disk of a configuration or a suite, before anything runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.planning.answers import Answers
    from lorastudy.planning.estimate import Estimator
    from lorastudy.planning.predictions import Suggestion
    from lorastudy.suite.experiment import Experiment
    from lorastudy.suite.settings import Settings


def estimate(
    base_model: Annotated[
        str, typer.Option(help="Folder with a config.json, a model fetched from the hub before, or `lab`.")
    ] = "lab",
    suite: Annotated[Path | None, typer.Option(help="Estimate the packs of a suite file instead.")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Rank of the arms; give it several times.")] = None,
    target_modules: Annotated[str, typer.Option(help="A preset, or module names with commas.")] = "qkvo",
    max_seq_length: Annotated[
        int, typer.Option(help="Tokens per row; every row is taken to have as many.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass, for each arm.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Forward passes per optimizer step.")] = 1,
    quantization: Annotated[str, typer.Option(help="4bit, 8bit, fp16, bf16 or fp32.")] = "bf16",
    arms: Annotated[int, typer.Option(help="Arms of each rank, trained together.", min=1)] = 1,
    lora_dropout: Annotated[float, typer.Option(help="Before lora_A.")] = 0.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model folder run its own code.")
    ] = False,
    vram: Annotated[str | None, typer.Option(help="Memory it has to fit, such as 8GB or 80GiB.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time a few real steps first; loads the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict peak memory term by term, time and disk; say what fits, and what would make it fit."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.executors.process import JobWorker
    from lorastudy.planning.answers import Answers
    from lorastudy.planning.predictions import announced
    from lorastudy.suite.settings import settings_from_options

    if suite is not None:
        from lorastudy.planning.design import Designer
        from lorastudy.suite.suite_file import load_suite

        experiments: Sequence[Experiment] = Designer(suite=load_suite(suite)).design().of_every_arm
    else:
        settings = settings_from_options(
            base_model=base_model, max_seq_length=max_seq_length, quantization=quantization,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            lora_dropout=lora_dropout, gradient_checkpointing=gradient_checkpointing,
            trust_remote_code=trust_remote_code, target_modules=_targets(target_modules),
        )  # fmt: skip
        experiments = _arms(settings, ranks=rank or [16], copies=arms)
    with JobWorker() as worker:
        shown = _shown(
            experiments,
            Answers(announced(worker, lambda line: say(line, file=sys.stderr))),
            with_data=suite is not None,
            vram=vram,
            calibrate=calibrate,
        )
    if as_json:
        say(json.dumps({"packs": [each.as_json() for each in shown]}, indent=1))
        return
    console = PlainConsole()
    for each in shown:
        each.show(console, vram=vram)


def _shown(
    experiments: "Sequence[Experiment]",
    answers: "Answers",
    *,
    with_data: bool,
    vram: str | None,
    calibrate: bool,
) -> "list[_Shown]":
    from lorastudy.planning.estimate import by_pack, memory_size, prepare, within_margin

    budget_bytes = None if vram is None else within_margin(memory_size(vram))
    estimators = by_pack(experiments, answers, with_data=with_data)
    prepare(estimators, answers)
    alike: dict[str, list[Estimator]] = {}
    for estimator in estimators:
        alike.setdefault(estimator.experiments[0].data_key, []).append(estimator)
    # Packs that differ only in the order of their rows: the one with the largest micro-batch represents all.
    return [
        _Shown.of(
            max(group, key=lambda each: each.estimate().prediction.terms.total),
            answers,
            num_packs=len(group) if with_data else None,
            budget_bytes=budget_bytes,
            calibrate=calibrate,
        )
        for group in alike.values()
    ]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Arms that train together: what they need, whether it fits, and what would help.

    `num_packs` is the number of similar packs in a suite, one for each seed; None without a suite.
    """

    estimator: "Estimator"
    budget_bytes: int | None
    num_packs: int | None
    fewer: "Suggestion | None"
    suggestions: "Sequence[Suggestion]"

    @classmethod
    def of(
        cls,
        estimator: "Estimator",
        answers: "Answers",
        *,
        num_packs: int | None,
        budget_bytes: int | None,
        calibrate: bool,
    ) -> "_Shown":
        from lorastudy.planning.predictions import fewer_arms, suggestions

        if calibrate:
            estimator.calibrate()
        total = estimator.estimate().prediction.terms.total
        fits = budget_bytes is None or total <= budget_bytes
        return cls(
            estimator=estimator,
            budget_bytes=budget_bytes,
            num_packs=num_packs,
            fewer=None if fits else fewer_arms(estimator, budget_bytes=budget_bytes or 0),
            suggestions=()
            if fits
            else suggestions(estimator.experiments, answers, budget_bytes=budget_bytes or 0),
        )

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        from lorastudy.planning.plan_summary import estimate_as_json

        estimate, calibration = self.estimator.estimate(), self.estimator.calibration()
        changes = [*([self.fewer] if self.fewer else []), *self.suggestions]
        return {
            **estimate_as_json(estimate),
            "base_model": self.estimator.settings.base_model,
            "device": self.estimator.machine.device,
            "timed_steps": [] if calibration is None else [vars(point) for point in calibration.points],
            "budget_bytes": self.budget_bytes,
            "fits": None
            if self.budget_bytes is None
            else estimate.prediction.terms.total <= self.budget_bytes,
            "changes": [vars(change) for change in changes],
        }

    def show(self, console: "PlainConsole", *, vram: str | None) -> None:
        """Print everything as text."""
        from lorastudy.cli.plan_output import show_terms, show_time
        from lorastudy.planning.estimate import margin_words
        from lorastudy.planning.plan_summary import disk_bytes
        from lorastudy.report.numbers import count, plural, size

        estimate, shape, settings = self.estimator.estimate(), self.estimator.shape, self.estimator.settings
        batch = estimate.rows.batch
        # In a suite, an arm trains separately with each seed, so these are experiments.
        held = plural(len(estimate.num_trainable), "arm" if self.num_packs is None else "experiment")
        if self.num_packs is not None and self.num_packs > 1:
            held += f" in each of {self.num_packs} packs"
        console.print(settings.base_model, style="bold", end="")
        console.print(
            f" ({shape.model_type}, {count(shape.num_parameters)} parameters), "
            f"{settings.quantization}; {held} on one base, {batch.num_tokens} tokens an arm "
            f"and forward pass, on a {self.estimator.machine.device}; {estimate.engine}\n"
        )
        show_terms(console, estimate)
        calibration = self.estimator.calibration()
        if calibration is None or estimate.step_seconds is None:
            console.print("\ntime: not calibrated on this machine; --calibrate times a few steps")
        else:
            show_time(console, estimate, calibration=calibration)
        console.print(f"disk: {size(disk_bytes(estimate))}")
        if self.budget_bytes is None:
            return
        total = estimate.prediction.terms.total
        fits = total <= self.budget_bytes
        console.print("\nfits" if fits else "\ndoes not fit", style="green" if fits else "red", end="")
        console.print(
            f" {vram}: {size(total)} of {size(self.budget_bytes)} ({margin_words()}: context of the device, "
            "memory lost between tensors, error of the prediction)"
        )
        if not fits:
            self._show_changes(console)

    def _show_changes(self, console: "PlainConsole") -> None:
        from rich.table import Table

        from lorastudy.report.numbers import size

        table = Table(
            box=None,
            header_style="bold",
            pad_edge=False,
            title="what would change that",
            title_justify="left",
        )
        table.add_column("change")
        table.add_column("predicted peak", justify="right")
        table.add_column("fits")
        for change in [*([self.fewer] if self.fewer else []), *self.suggestions]:
            table.add_row(change.change, size(change.total_bytes), "yes" if change.fits else "no")
        console.print()
        console.print(table)
        console.print("The effective batch is the same with each of these.")


def _targets(text: str) -> "str | tuple[str, ...]":
    from lorastudy.suite.settings import TARGET_PRESETS

    return text if text in TARGET_PRESETS else tuple(name.strip() for name in text.split(",") if name.strip())


def _arms(settings: "Settings", *, ranks: Sequence[int], copies: int) -> "list[Experiment]":
    """Arms of these ranks, each `copies` times, on one order of the rows and so in one pack."""
    from lorastudy.suite.experiment import Experiment, Sources

    if min(ranks) < 1:
        raise StudyError(f"--rank: {min(ranks)}: at least 1")
    return [
        Experiment(
            name=f"r{rank}_{copy}", arm=f"r{rank}", experiment_type="custom", seed=copy,
            settings=settings.model_copy(update={"lora_rank": rank, "data_seed": 0}),
            sources=Sources(base_model=settings.base_model, dataset=""),
        )
        for rank in ranks
        for copy in range(copies)
    ]  # fmt: skip
