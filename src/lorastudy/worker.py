"""A worker: folders with a `pack.json` or a `job.json` in, records and adapters out.

    python -m lorastudy.worker FOLDER [FOLDER ...]

It serves the folders one after another and keeps the base model between them while it is the same. It knows
nothing of the store or the suite; it speaks through `records.jsonl` alone. This is the one place that catches
whatever goes wrong, and it keeps the traceback.
"""

import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lorastudy.data.examples import Example
from lorastudy.data.load import train_and_eval
from lorastudy.data.tokenise import TokenSet, chat_template_of, tokenise
from lorastudy.disk import serve_and_tell
from lorastudy.engine.arms import Arm, Engine, EngineFactory, StepResult, make_arm
from lorastudy.engine.choice import engine_factory
from lorastudy.engine.environment import environment
from lorastudy.engine.feed import Feed, make_feed, steps_of
from lorastudy.engine.loading import BaseModel, check_lengths, default_device, load_base
from lorastudy.engine.meter import MemoryMeter, profile_arms, synchronise
from lorastudy.engine.targets import resolve_targets
from lorastudy.errors import StudyError
from lorastudy.evaluation.checkpoint import run_job
from lorastudy.evaluation.exact_match import ExactMatch
from lorastudy.evaluation.perplexity import CompletionLoss
from lorastudy.jobs import AdapterOrigin
from lorastudy.lifeline import end_with_parent
from lorastudy.records import (
    DONE_NAME,
    RECORDS_NAME,
    FailureKind,
    Generation,
    Outcome,
    Pack,
    PackProfile,
    PackStep,
    Record,
    RecordWriter,
    Score,
)
from lorastudy.spec.settings import Settings

Emit = Callable[[Record], None]

#: Steps over which an arm's speed alone is measured.
NUM_TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class PackData:
    """The token sets of a pack."""

    train: TokenSet
    held_out: TokenSet
    forgetting: TokenSet | None

    def scored(self) -> list[tuple[str, TokenSet]]:
        """The sets that are scored, by the name of their split."""
        forgetting = [] if self.forgetting is None else [("forgetting", self.forgetting)]
        return [("eval", self.held_out), *forgetting]


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds between laps."""

    _last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(kw_only=True)
class Pace:
    """How fast training goes."""

    seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    _clock: Stopwatch = field(default_factory=Stopwatch)

    def step(self, num_tokens: int) -> float:
        """Take note of a step that just ended; return its seconds."""
        self.seconds.append(self._clock.lap())
        self.num_tokens += num_tokens
        return self.seconds[-1]

    @property
    def median_step_seconds(self) -> float | None:
        """None before the first step."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens of all arms together."""
        return self.num_tokens / sum(self.seconds) if self.seconds else None


@dataclass(kw_only=True)
class BaseCache:
    """The base model last used; packs of one base come one after another."""

    key: object = None
    base: BaseModel | None = None

    def get(self, settings: Settings, *, device: torch.device) -> BaseModel:
        """The base model of these settings, loaded only if it is another than the last one."""
        key = (
            settings.base_model, settings.quantization, settings.bnb_4bit_quant_type,
            settings.bnb_4bit_use_double_quant, settings.trust_remote_code,
        )  # fmt: skip
        if self.base is None or key != self.key:
            self.base = None  # the old one goes before the new one comes
            self.base, self.key = load_base(settings, device=device), key
        return self.base


@dataclass(kw_only=True)
class PackRun:
    """One pack on its way: what has ended, and how long each part took."""

    pack: Pack
    folder: Path
    emit: Emit
    ended: set[str] = field(default_factory=set)

    def end(self, outcome: Outcome) -> None:
        """Record how an experiment ended; the first word counts."""
        if outcome.experiment_id not in self.ended:
            self.ended.add(outcome.experiment_id)
            self.emit(outcome)

    def emit_open(self, records: Iterable[Score | Generation]) -> None:
        """Record what was measured of experiments that have not ended; a diverged arm has no score.

        An arm whose last step broke it shows that here: its scores are not numbers.
        """
        for record in records:
            if record.experiment_id in self.ended:
                continue
            if isinstance(record, Score) and not _is_finite(record):
                self.end(_diverged(record.experiment_id, f"{record.split} {record.metric} was not finite"))
            else:
                self.emit(record)

    def fail_rest(self, kind: FailureKind, error: BaseException) -> None:
        """End every experiment that has not ended with the same failure."""
        for experiment in self.pack.experiments:
            self.end(_failed(experiment.id, kind, error=error))


def main(arguments: Sequence[str]) -> int:
    """Serve the folders; exit 0 even when experiments failed, since that is on record."""
    end_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cache = BaseCache()
    for folder in map(Path, arguments):
        if (folder / "job.json").exists():
            _serve_job(folder)
        else:
            _serve_pack(folder, cache)
    return 0


def _serve_pack(folder: Path, cache: BaseCache) -> None:
    writer = RecordWriter(folder / RECORDS_NAME)
    run = PackRun(pack=Pack.read(folder), folder=folder, emit=writer.write)
    try:
        run_pack(run, cache=cache)
    except StudyError as error:
        run.fail_rest("user", error)
    except torch.OutOfMemoryError as error:
        run.fail_rest("out_of_memory", error)
    except Exception as error:  # the worker's edge: whatever it was, it goes on record
        run.fail_rest("out_of_memory" if _is_cpu_allocation_failure(error) else "error", error)
        if torch.cuda.is_available():
            raise  # a CUDA fault outlives its exception: the next folder gets a fresh worker
    finally:
        writer.close()
    (folder / DONE_NAME).touch()


def _serve_job(folder: Path) -> None:
    """A job's result or its user error goes to `result.json`; anything else is a crash with its traceback."""
    try:
        result = run_job(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    except StudyError as error:
        result = {"error": str(error)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def run_pack(run: PackRun, *, cache: BaseCache) -> None:
    """Load, profile, train, evaluate, save; emit a record of each as it comes."""
    settings = run.pack.experiments[0].settings
    device = default_device()
    run.emit(environment(device))
    clock = Stopwatch()
    base = cache.get(settings, device=device)
    data = load_data(run, settings, tokenizer=base.tokenizer)
    for tokens in (data.train, *(tokens for _, tokens in data.scored())):
        check_lengths(base, tokens.rows)
    arms = resolve_arms(run, base=base, num_rows=len(data.train.rows))
    if not arms:
        return
    feed = make_feed(data.train, settings, num_steps=max(arm.num_steps for arm in arms), device=device)
    make_engine = engine_factory(run.pack.engine, base=base, settings=settings, probe=arms[0])
    emit_scores_before(run, make_engine, arms=arms, base=base, data=data)
    profiles = profile_arms(
        make_engine, arms, base=base, largest=feed.largest_step(), typical=feed.first_steps(NUM_TIMED_STEPS)
    )
    for profile in profiles:
        run.emit(profile)
    load_seconds = clock.lap()

    engine = make_engine(arms)
    try:
        with MemoryMeter(device) as memory:
            pace = train(run, engine, feed=feed)
        train_seconds = clock.lap()
        evaluate(run, engine, base=base, data=data)
        save(run, engine)
    finally:
        engine.close()
    run.emit(
        PackProfile(
            engine=engine.name,
            num_arms=len(arms),
            memory_kind=memory.kind,
            peak_memory_bytes=memory.peak_bytes,
            median_step_seconds=pace.median_step_seconds,
            tokens_per_second=pace.tokens_per_second,
            load_seconds=load_seconds,
            train_seconds=train_seconds,
            eval_seconds=clock.lap(),
        )
    )
    for arm in engine.arms:
        run.end(
            Outcome(
                experiment_id=arm.experiment_id,
                status="completed",
                step=arm.num_steps,
                adapter_path=_adapter_path(arm),
            )
        )


def load_data(run: PackRun, settings: Settings, *, tokenizer: PreTrainedTokenizerBase) -> PackData:
    """Read, render and tokenise the pack's data sets; record what became of their rows."""
    study = train_and_eval(settings, chat_template=chat_template_of(tokenizer))

    def tokens(examples: Sequence[Example], split: str) -> TokenSet:
        return tokenise(examples, tokenizer=tokenizer, max_seq_length=settings.max_seq_length, split=split)

    data = PackData(
        train=tokens(study.train, "train"),
        held_out=tokens(study.held_out, "eval"),
        forgetting=None if study.forgetting is None else tokens(study.forgetting, "forgetting"),
    )
    run.emit(replace(data.train.summary, num_duplicate_rows=study.num_duplicates))
    run.emit(replace(data.held_out.summary, num_leaked_rows=study.num_leaked))
    if data.forgetting is not None:
        run.emit(data.forgetting.summary)
    return data


def resolve_arms(run: PackRun, *, base: BaseModel, num_rows: int) -> list[Arm]:
    """The arms that fit this model; an experiment that does not fit it fails alone."""
    arms = []
    for experiment in run.pack.experiments:
        try:
            module_names = resolve_targets(
                list(base.linear_layers),
                target_modules=experiment.settings.target_modules,
                layers_to_transform=experiment.settings.layers_to_transform,
            )
        except StudyError as error:
            run.end(_failed(experiment.id, "user", error=error))
        else:
            length = steps_of(experiment.settings, num_rows=num_rows)
            arms.append(make_arm(experiment, module_names=module_names, num_steps=length))
    return arms


def emit_scores_before(
    run: PackRun, make_engine: EngineFactory, *, arms: Sequence[Arm], base: BaseModel, data: PackData
) -> None:
    """Score the base model as it came, once, on record for every experiment; a fresh adapter changes nothing."""
    engine = make_engine(arms[:1])
    try:
        for split, tokens in data.scored():
            for score in CompletionLoss().evaluate(engine, tokens.rows, base=base, split=f"{split}_before"):
                if not _is_finite(score):
                    raise StudyError(
                        f"quantization: {base.dtype}: the base model's own {score.metric} on {split} is not finite; "
                        "try bf16 or fp32"
                    )
                for arm in arms:
                    run.emit(replace(score, experiment_id=arm.experiment_id))
    finally:
        engine.close()


def train(run: PackRun, engine: Engine, *, feed: Feed) -> Pace:
    """Train to the end, recording every step; an arm that diverges ends here and now."""
    pace = Pace()

    def on_step(result: StepResult) -> None:
        synchronise(feed.device)
        num_tokens = result.num_tokens * len(result.arms)
        run.emit(
            PackStep(
                step=result.step,
                num_steps=len(feed.plan),
                num_tokens=num_tokens,
                num_completion_tokens=result.num_completion_tokens,
                seconds=pace.step(num_tokens),
                arms=result.arms,
            )
        )
        for experiment_id in result.diverged:
            message = f"loss or gradient was not finite in step {result.step}"
            run.end(_diverged(experiment_id, message, step=result.step))

    engine.train(feed.steps(), on_step=on_step)
    return pace


def evaluate(run: PackRun, engine: Engine, *, base: BaseModel, data: PackData) -> None:
    """Score every arm that did not diverge on every data set."""
    settings = run.pack.experiments[0].settings
    for split, tokens in data.scored():
        run.emit_open(CompletionLoss().evaluate(engine, tokens.rows, base=base, split=split))
    if settings.max_generation_samples:
        exact_match = ExactMatch(
            max_new_tokens=settings.max_new_tokens,
            max_rows=settings.max_generation_samples,
            pattern=settings.exact_match_pattern,
        )
        run.emit_open(exact_match.evaluate(engine, data.held_out.rows, base=base, split="eval"))


def save(run: PackRun, engine: Engine) -> None:
    """Write the adapters of all arms that did not diverge, each with its origin."""
    experiments = {experiment.id: experiment for experiment in run.pack.experiments}
    for arm in engine.arms:
        if arm.experiment_id not in run.ended:
            folder = run.folder / _adapter_path(arm)
            engine.save_adapter(arm, folder)
            AdapterOrigin.of(experiments[arm.experiment_id]).write(folder)


def _adapter_path(arm: Arm) -> str:
    return f"adapters/{arm.experiment_id}"


def _failed(experiment_id: str, kind: FailureKind, *, error: BaseException) -> Outcome:
    return Outcome(
        experiment_id=experiment_id,
        status="failed",
        failure_kind=kind,
        message=str(error) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
    )


def _diverged(experiment_id: str, message: str, *, step: int | None = None) -> Outcome:
    return Outcome(
        experiment_id=experiment_id, status="failed", failure_kind="diverged", message=message, step=step
    )


def _is_finite(score: Score) -> bool:
    return all(math.isfinite(value) for value in (score.value, *score.items))


def _is_cpu_allocation_failure(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


if __name__ == "__main__":
    sys.exit(serve_and_tell(main, sys.argv[1:]))
