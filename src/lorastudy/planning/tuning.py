"""What `lorastudy tune` tries: its arms, the length of a training, and whether the time can end in an answer.

The memory decides the precision and the layout of the batch, by the published rules (`planning.literature`). A few timed steps
say how long a run takes. From that follow the number of arms and, if whole trainings do not fit, the number of steps:

- An arm takes about `SEARCH_RUNS` runs to find its learning rate, and the search may take half of the time.
- A verdict takes `FINAL_RUNS` runs at least: two arms with as many seeds as can show a difference.

The result is a suite with a time budget. It runs as any suite does, and `running.finals` spends its time.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorastudy.errors import StudyError
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import Estimator, MemoryBudget, PackEstimate, budget_here, budget_of
from lorastudy.planning.pack_report import time_steps
from lorastudy.planning.predictions import OnWait, num_scored_tokens, print_nothing, worker_answers
from lorastudy.planning.recommendation import answer_request, machine_of
from lorastudy.planning.recommendation_request import RecommendationRequest
from lorastudy.planning.study_plan import StudyPlan, plan_study
from lorastudy.planning.validation_cost import FORWARD_SHARE
from lorastudy.report.numbers import count, duration, listing, percent, plural, size
from lorastudy.suite.question import MIN_SEEDS, Margin
from lorastudy.suite.settings import AUTO, Settings, settings_from_options
from lorastudy.suite.suite import MAX_NAME_LENGTH, Suite
from lorastudy.suite.suite_file import load_suite, suite_from_values, suite_yaml

#: Target modules and rank of the arms, in the order in which more time adds them. Every linear layer comes first, by the
#: published rule.
LADDER: Sequence[tuple[str, int]] = (
    ("all", 16), ("all", 4), ("qkvo", 16), ("all", 64), ("qkvo", 64), ("qkvo", 4), ("all", 1), ("all", 256),
)  # fmt: skip
#: What a preset of target modules is called for a reader.
TARGETS: Mapping[str, str] = {"all": "all linear layers", "qkvo": "attention"}

#: Runs that an arm takes to find its rate: three, and often one beyond the edge.
SEARCH_RUNS = 4
#: Two finalists with the fewest seeds that can show a difference.
FINAL_RUNS = 2 * MIN_SEEDS
#: The most seeds of an arm in the finals.
MAX_SEEDS = 16
#: With fewer steps, the rate's decay and warm-up are most of a training.
FEWEST_STEPS = 50
#: Arms of a study whose trainings are cut short, the number that is tried first.
ARMS_IF_SHORT = (4, 2)
#: Held-out and test rows that are scored of each: a share of the rows trained on, within these bounds.
SCORED_SHARE, FEWEST_SCORED, MOST_SCORED = 0.15, 100, 500
#: What a run takes besides its steps and its scores: saving, generated answers, gaps between packs.
OVERHEAD = 1.3
#: Seconds until the first step: libraries and the base model.
START_SECONDS = 15.0
#: No machine with a CPU alone computes faster. So a model that is too slow at this speed is not even loaded.
MAX_CPU_FLOPS = 4e12
#: The margin if the user gives none: a twentieth of what training gains.
DEFAULT_MARGIN = "5%"


#: The options of settings that have another name.
_OPTIONS = {
    "dataset_path": "dataset", "eval_dataset_path": "eval_dataset", "test_dataset_path": "test_dataset",
    "num_train_epochs": "num_epochs",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What the user asks for."""

    base: Settings
    """Base model, data, length of rows and of training."""
    fixed: Mapping[str, Any]
    """The settings that the user gave, by key. The plan keeps them."""
    hours: float
    suite_name: str
    margin: float | str = DEFAULT_MARGIN
    primary_metric: str = "loss"

    vram: str | None = None
    """The memory that a training must fit, as the user gave it; None for this machine's."""

    @property
    def seconds(self) -> float:
        """The time budget in seconds."""
        return 3600 * self.hours

    @property
    def command(self) -> str:
        """The command that asks for the same."""
        asked = {
            **{_OPTIONS.get(key, key): value for key, value in self.fixed.items()},
            "hours": f"{self.hours:g}", "vram": self.vram, "margin": self.margin, "metric": self.primary_metric,
            "name": self.suite_name,
        }  # fmt: skip
        given = [
            part
            for key, value in asked.items()
            if value is not None and value is not False
            for part in (f"--{key.replace('_', '-')}", *([] if value is True else [str(value)]))
        ]
        return shlex.join(["lorastudy", "tune", *given])


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast this machine trains the model on these rows. Packing is included: times are an arm's share."""

    step_seconds: float
    scoring_seconds: float
    """Of all held-out and test rows of a run."""
    num_steps: int
    """Of a whole training."""

    def run_seconds(self, num_steps: int | None = None) -> float:
        """Seconds of a run of `num_steps` steps, by default those of a whole training."""
        return OVERHEAD * (self.step_seconds * (num_steps or self.num_steps) + self.scoring_seconds)

    def steps_within(self, seconds: float) -> int:
        """The steps of a run that takes so long."""
        return max(0, int((seconds / OVERHEAD - self.scoring_seconds) / self.step_seconds))


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How many arms are tried, with trainings of how many steps."""

    num_arms: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class TunePlan:
    """The suite that finds the answer, and what to expect of it, a sentence a line."""

    suite: Suite
    lines: tuple[str, ...]


def tune_request(
    given: Mapping[str, Any],
    *,
    hours: float,
    vram: str | None = None,
    margin: float | str | None = None,
    metric: str = "loss",
    name: str | None = None,
) -> TuneRequest:
    """The request from settings and options. A setting of None counts as not given.

    Raises:
        StudyError: a value that cannot be used.
    """
    if not 0 < hours < float("inf"):
        raise StudyError(f"--hours: {hours:g}: give a number greater than 0, such as 0.5")
    fixed = {key: value for key, value in given.items() if value is not None}
    data = str(fixed["dataset_path"]).rpartition(":")[2]
    return TuneRequest(
        base=settings_from_options(**fixed),
        fixed=fixed,
        hours=hours,
        vram=vram,
        margin=_margin(DEFAULT_MARGIN if margin is None else margin),
        # A function's file is named from the suite's folder, which is not the current one.
        primary_metric=str(Path(metric).absolute()) if ".py:" in metric else metric,
        suite_name=name or f"tune_{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(data).stem)}"[:MAX_NAME_LENGTH],
    )


def _margin(given: float | str) -> float | str:
    """The margin as a suite has it: a number, or a share such as `5%`."""
    try:
        return float(given)
    except ValueError:
        pass
    try:
        Margin.parse(given)
    except ValueError as error:
        raise StudyError(f"--margin: {error}") from error
    return given


def plan_tuning(
    request: TuneRequest,
    answers: Answers,
    *,
    budget: MemoryBudget | None = None,
    on_wait: OnWait = print_nothing,
) -> TunePlan:
    """The plan for a request. `budget` is the memory that a training must fit; by default this machine's.

    Loads the base model once, to time a few steps.

    Raises:
        DataError: the rows cannot be used with the base model's tokenizer.
        StudyError: nothing fits the memory, or no answer can come out in the time; the message says what would help.
    """
    memory = budget or budget_here(machine_of(request.base, answers))
    layout = _layout(request, answers, budget=memory)
    trial = _suite(request, layout, scope=Scope(num_arms=2, num_steps=0), max_eval_samples=MOST_SCORED)
    plan = plan_study(trial, answers=answers, on_wait=on_wait)
    plan.check_can_run()
    _check_speed(request, plan)
    time_steps(plan)
    pace = _pace(plan)
    arms = _ladder(plan)
    scope = scope_of(pace, seconds=request.seconds, max_arms=len(arms))
    if scope is None:
        raise StudyError(_too_little_time(request, pace))
    rows = scope.num_steps * layout.per_device_train_batch_size * layout.gradient_accumulation_steps
    scored = int(min(MOST_SCORED, max(FEWEST_SCORED, SCORED_SHARE * rows)))
    is_whole = scope.num_steps == pace.num_steps
    suite = _suite(
        request,
        layout,
        scope=replace(scope, num_steps=0) if is_whole else scope,
        max_eval_samples=scored,
        arms=arms,
    )
    return TunePlan(suite=suite, lines=tuple(_lines(request, suite, scope=scope, pace=pace, budget=memory)))


def kept_or_new(
    request: TuneRequest, file: Path, *, on_wait: OnWait = print_nothing
) -> tuple[Suite, Sequence[str]]:
    """The suite that the same request wrote into the file before, to be continued; else a new one, with the plan's lines.

    The file's first line is the command. A new plan for the same command could have other arms, since times vary.

    Raises:
        DataError, StudyError: as `plan_tuning`.
    """
    first_line = f"# {request.command}\n"
    if file.is_file() and file.read_text(encoding="utf-8").startswith(first_line):
        return load_suite(file), ()
    budget = None if request.vram is None else budget_of(request.vram)
    with worker_answers(on_wait) as answers:
        plan = plan_tuning(request, answers, budget=budget, on_wait=on_wait)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(first_line + suite_yaml(plan.suite), encoding="utf-8")
    return load_suite(file), plan.lines


def scope_of(pace: Pace, *, seconds: float, max_arms: int) -> Scope | None:
    """As many arms as can be searched in half of the time; if not even two can, shorter trainings. None if too short."""
    left = seconds - START_SECONDS
    for num_arms in range(max_arms, 1, -1):
        if _needed_seconds(pace.run_seconds(), num_arms=num_arms) <= left:
            return Scope(num_arms=num_arms, num_steps=pace.num_steps)
    for num_arms in ARMS_IF_SHORT:
        run_seconds = left / _needed_seconds(1.0, num_arms=num_arms)
        num_steps = min(pace.num_steps, pace.steps_within(run_seconds))
        if num_steps >= FEWEST_STEPS and num_arms <= max_arms:
            return Scope(num_arms=num_arms, num_steps=num_steps)
    return None


def hours_needed(pace: Pace, *, num_steps: int | None = None) -> float:
    """Hours that two arms need for a verdict, in trainings of `num_steps` steps, by default whole ones."""
    return (_needed_seconds(pace.run_seconds(num_steps), num_arms=2) + START_SECONDS) / 3600


def _needed_seconds(run_seconds: float, *, num_arms: int) -> float:
    """The time of which half is enough for the search, and the other half for a verdict on two arms."""
    return 2 * run_seconds * max(SEARCH_RUNS * num_arms, FINAL_RUNS)


def _layout(request: TuneRequest, answers: Answers, *, budget: MemoryBudget) -> Settings:
    """Precision, micro-batch and recomputation that fit, by the published rules."""
    about = RecommendationRequest(
        base=request.base,
        has_data=True,
        budget_bytes=budget.budget_bytes,
        fixed={
            key: value for key, value in request.fixed.items() if key in {"quantization", "max_seq_length"}
        },
    )
    return answer_request(about, answers, tracker=None, budget=budget).recommendation.candidate.settings


#: Settings that the layout decides.
_OF_THE_LAYOUT = (
    "quantization", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "lora_alpha",
)  # fmt: skip


def _suite(
    request: TuneRequest,
    layout: Settings,
    *,
    scope: Scope,
    max_eval_samples: int,
    arms: Sequence[tuple[str, int]] = LADDER,
) -> Suite:
    """The suite of a plan. A scope without steps trains as long as the user says."""
    length: dict[str, Any] = {}
    if scope.num_steps:
        length = {"max_steps": scope.num_steps, "num_train_epochs": None}
    values = {
        **{key: getattr(layout, key) for key in _OF_THE_LAYOUT},
        "max_eval_samples": max_eval_samples,
        **request.fixed,
        **length,
        "suite_name": request.suite_name,
        "description": "Written by `lorastudy tune`: which rank and which target modules to use.",
        "primary_metric": request.primary_metric,
        "margin": request.margin,
        "time_budget_hours": request.hours,
        "learning_rate": AUTO,
        "seeds": list(range(MAX_SEEDS)),
        "experiments": [
            {"target_modules": targets, "lora_rank": rank} for targets, rank in arms[: scope.num_arms]
        ],
    }
    flags = {"time_budget_hours": "--hours", "primary_metric": "--metric", "suite_name": "--name"}
    return suite_from_values(values, where="tune", flags=flags)


def _ladder(plan: StudyPlan) -> Sequence[tuple[str, int]]:
    """The arms that this model can have: no rank above its hidden size."""
    hidden_size = _estimator(plan).shape.hidden_size
    return [arm for arm in LADDER if hidden_size is None or arm[1] <= hidden_size]


def _estimator(plan: StudyPlan) -> Estimator:
    found = next(iter(plan.predicted.estimators.values()), None)
    if found is None:
        raise StudyError(
            "\n".join(plan.predicted.problems) or "the model's memory and time cannot be predicted"
        )
    return found


def _estimate(plan: StudyPlan) -> PackEstimate:
    return _estimator(plan).estimate(plan.packs[0].experiments)


def _pace(plan: StudyPlan) -> Pace:
    """The pace by the timed steps: of the first pack, each arm has its share."""
    estimator, estimate = _estimator(plan), _estimate(plan)
    num_arms = len(plan.packs[0].experiments)
    assert estimate.step_seconds is not None
    assert estimate.calibration is not None
    assert estimate.rows.num_steps is not None
    scoring = FORWARD_SHARE * estimate.calibration.step_seconds(num_scored_tokens(estimator) * num_arms)
    side_by_side = plan.num_packs_at_once if estimator.machine.device == "cuda" else 1
    return Pace(
        step_seconds=estimate.step_seconds / num_arms / side_by_side,
        scoring_seconds=scoring / num_arms / side_by_side,
        num_steps=estimate.rows.num_steps,
    )


def _check_speed(request: TuneRequest, plan: StudyPlan) -> None:
    """Refuse a model that is too slow for this CPU by arithmetic alone, before it is loaded.

    Each token takes two multiplications and additions with each frozen weight: one in the forward pass, one in the
    backward pass.

    Raises:
        StudyError: no answer can come out in the time.
    """
    estimator = _estimator(plan)
    if estimator.machine.device == "cuda":
        return
    estimate = _estimate(plan)
    flops = 4 * estimator.shape.num_parameters * estimate.rows.mean_tokens_per_step
    pace = Pace(
        step_seconds=flops / MAX_CPU_FLOPS,
        scoring_seconds=0,
        num_steps=estimate.rows.num_steps or FEWEST_STEPS,
    )
    if scope_of(pace, seconds=request.seconds, max_arms=len(LADDER)) is None:
        raise StudyError(_too_little_time(request, pace, at_best=True))


def _too_little_time(request: TuneRequest, pace: Pace, *, at_best: bool = False) -> str:
    """Why no answer can come out, and what would."""
    fewest = min(FEWEST_STEPS, pace.num_steps)
    short, whole = hours_needed(pace, num_steps=fewest), hours_needed(pace)
    takes = f"takes {'at least' if at_best else 'about'} {duration(pace.step_seconds)} here"
    words = (
        f"--hours: {request.hours:g}: no answer can come out in that time. One step of one training {takes}, and a verdict on two "
        f"arms needs {2 * max(2 * SEARCH_RUNS, FINAL_RUNS)} runs. What would: --hours {_rounded(short)} for trainings of "
        f"{plural(fewest, 'step')}"
    )
    if pace.num_steps > FEWEST_STEPS:
        words += f", --hours {_rounded(whole)} for whole trainings of {count(pace.num_steps)} steps"
    gpu = ", a GPU" if at_best else ""
    return f"{words}; or a smaller model, shorter rows (--max-seq-length){gpu}"


def _rounded(hours: float) -> str:
    """The hours with two digits, rounded up."""
    return f"{hours * 1.05:.2g}"


def _lines(
    request: TuneRequest, suite: Suite, *, scope: Scope, pace: Pace, budget: MemoryBudget
) -> Iterator[str]:
    """What is tried, what that takes, and what it can show."""
    first = suite.arms[0].settings
    yield f"tries {_in_words(suite)}, each at learning rates that it looks for"
    layout = f"{first.per_device_train_batch_size * first.gradient_accumulation_steps} rows a step, the base in {first.quantization}"
    yield f"fits {budget.words} ({size(budget.budget_bytes)} usable): {layout}" + (
        ", with recomputation" if first.gradient_checkpointing else ""
    )
    run_seconds = pace.run_seconds(scope.num_steps)
    num_runs = int((request.seconds - START_SECONDS) / run_seconds)
    yield (
        f"a run trains {count(scope.num_steps)} steps and takes about {duration(run_seconds)} here, scoring included: "
        f"{duration(request.seconds)} are about {count(num_runs)} runs"
    )
    if scope.num_steps < pace.num_steps:
        yield (
            f"a whole training has {count(pace.num_steps)} steps. They are cut to {percent(scope.num_steps / pace.num_steps, decimals=0)} "
            f"to end in time, and the answer holds for trainings of that length; --hours {_rounded(hours_needed(pace))} allows whole ones"
        )
    num_seeds = min(MAX_SEEDS, int(num_runs / 4))
    yield (
        "the first half of the time finds each arm's learning rate on validation rows; the second half trains the best arms again, with "
        f"up to {num_seeds} fresh seeds"
    )
    margin = Margin.parse(request.margin)
    yield (
        f"it can show which arm is better, and which cheaper arm is as good within {margin}, on test rows that took part in no choice; "
        f"what it shows with fewer than {MIN_SEEDS} seeds is preliminary"
    )


def _in_words(suite: Suite) -> str:
    """`4 arms: all linear layers at r=4, 16 and 64; attention at r=16`."""
    ranks: dict[str, list[int]] = {}
    for arm in suite.arms:
        ranks.setdefault(str(arm.settings.target_modules), []).append(arm.settings.lora_rank)
    parts = [f"{TARGETS[name]} at r={listing(map(str, sorted(found)))}" for name, found in ranks.items()]
    return f"{len(suite.arms)} arms: {'; '.join(parts)}"
