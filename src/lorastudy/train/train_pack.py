"""One pack from start to end: load, profile, train, evaluate, save. Start reading at `run_pack`.

Every measurement becomes a record as soon as it is known. An error of one arm ends that arm here; the worker catches
errors of the whole pack. A resumed pack continues from its checkpoint and is not profiled again.

Training stops on the way to score the validation rows (`train/validation.py`), and under racing it may pause there.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lorastudy.data.answers import trivial_scores
from lorastudy.data.batches import steps_of
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import Reach, longest_row, token_sets
from lorastudy.data.tokenise import TokenSet
from lorastudy.engine.arms import Engine, StepResult, TrainingArm, make_arm
from lorastudy.engine.batch import PackBatches, plan_pack
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.choice import ChosenEngine, engine_factory, probe_of
from lorastudy.engine.environment import cuda_allocator, environment
from lorastudy.engine.loading import (
    BaseCache,
    BaseModel,
    check_rows,
    default_device,
    num_embeddings,
    num_positions,
)
from lorastudy.engine.meter import MemoryMeter, profile_arms, synchronise
from lorastudy.errors import StudyError
from lorastudy.evaluation.evaluator import CompletionLoss, ExactMatch
from lorastudy.protocol.files import sync_tree
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.protocol.records import FELL_BACK, Incident, Outcome, PackProfile, PackStep, Record, Score
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME, adapter_path
from lorastudy.suite.methods import PLAIN
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import left_out, targets_of
from lorastudy.train.checkpointing import (
    Checkpointer,
    CheckpointSchedule,
    Stopwatch,
    TrainingTimes,
    find_resumption,
)
from lorastudy.train.outcomes import PackRun, Stop, diverged, failed, is_finite
from lorastudy.train.selection import Selection
from lorastudy.train.validation import scores_on_the_way, stretches


@dataclass(frozen=True, kw_only=True)
class PackData:
    """The token sets of a pack."""

    train: TokenSet
    held_out: TokenSet
    test: TokenSet | None
    forgetting: TokenSet | None

    def scored(self) -> list[tuple[str, TokenSet]]:
        """The sets that are scored, by the name of their split."""
        sets = (("eval", self.held_out), ("test", self.test), ("forgetting", self.forgetting))
        return [(split, tokens) for split, tokens in sets if tokens is not None]


@dataclass(frozen=True, kw_only=True)
class LoadedPack:
    """A pack that is ready to be profiled or trained."""

    base: BaseModel
    data: PackData
    arms: list[TrainingArm]
    batch_plan: PackBatches
    make_engine: ChosenEngine


def run_pack(run: PackRun, *, cache: BaseCache, stop: Stop) -> None:
    """Load, profile, train, evaluate and save a pack, and emit the records. A pack with `pause_at` ends at that rung.

    Raises:
        Stopped: there was a request to stop. A checkpoint holds the training so far.
    """
    settings = run.pack.experiments[0].settings
    device = default_device()
    here = environment(device)
    run.emit(here)
    clock = Stopwatch()
    loaded = load(run, settings, cache=cache, device=device)
    if loaded is None:
        return
    batch_plan, arms, make_engine = loaded.batch_plan, loaded.arms, loaded.make_engine
    times, schedule = TrainingTimes(), checkpoint_schedule(settings)
    resumption = find_resumption(
        run, arms=arms, environment=here, engine=make_engine.name, num_steps=batch_plan.num_steps
    )
    if resumption is None:
        measure_before(run, loaded, cache=cache)
    else:
        resumption.carry_over(run, times=times, schedule=schedule)
    engine = make_engine(arms)
    try:
        selection = Selection(run)
        if resumption is not None:
            engine.restore(resumption.state)
            selection.resume(resumption.selected, engine=engine)
        checkpointer = Checkpointer(
            run=run, engine=engine, environment=here, times=times, schedule=schedule, selection=selection
        )
        times.load_seconds += clock.lap()
        with checkpointer.saving_when_stopped():
            earlier = () if resumption is None else resumption.records
            with MemoryMeter(device) as memory:
                train_to_pause_or_end(run, checkpointer, loaded=loaded, stop=stop, earlier=earlier)
            clock.lap()
            if run.pack.pause_at is not None:
                checkpointer.save()
                with stop.deferred():
                    pause(run, engine)
                return
            selection.put_best_in_place(engine)
            evaluate(run, engine, base=loaded.base, data=loaded.data)
            save(run, engine)
    finally:
        engine.close()
    run.emit(schedule.profile())
    run.emit(
        PackProfile(
            engine=engine.name,
            num_arms=len(arms),
            memory_kind=memory.kind,
            peak_memory_bytes=memory.peak_bytes,
            median_step_seconds=times.median_step_seconds,
            tokens_per_second=times.tokens_per_second,
            load_seconds=times.load_seconds,
            train_seconds=times.train_seconds,
            eval_seconds=times.validation_seconds + clock.lap(),
            cuda_allocator=cuda_allocator(device),
        )
    )
    with stop.deferred():
        run.end_together(_completed(arm, selection) for arm in engine.arms)
    shutil.rmtree(run.folder / CHECKPOINTS_NAME, ignore_errors=True)


def load(run: PackRun, settings: Settings, *, cache: BaseCache, device: torch.device) -> LoadedPack | None:
    """Load the base and the data, and resolve the arms; None if no arm fits the base."""
    base = cache.get(settings, device=device)
    data = load_data(run, settings, base=base)
    sets = {"train": data.train, **dict(data.scored())}
    for tokens in sets.values():
        check_rows(tokens.rows, config=base.model.config, base_model=base.name, tokenizer=base.tokenizer)
    arms = resolve_arms(run, base=base, num_rows=len(data.train.rows))
    if not arms:
        return None
    data_seeds = {experiment.id: experiment.data_seed for experiment in run.pack.experiments}
    arms.sort(key=lambda arm: data_seeds[arm.experiment_id])  # arms with the same rows share products
    return LoadedPack(
        base=base,
        data=data,
        arms=arms,
        batch_plan=plan_pack(
            data.train,
            settings,
            data_seeds={arm.experiment_id: data_seeds[arm.experiment_id] for arm in arms},
            num_steps={arm.experiment_id: arm.num_steps for arm in arms},
            device=device,
        ),
        make_engine=engine_factory(
            run.pack.engine,
            base=base,
            settings=settings,
            probe=probe_of(arms),
            longest_row=longest_row(sets),
            on_fallback=lambda reason: run.emit(Incident(kind="fell_back", message=f"{FELL_BACK}{reason}")),
        ),
    )


def load_data(run: PackRun, settings: Settings, *, base: BaseModel) -> PackData:
    """The tokenised data sets of the pack. Records a summary of each, and the scores of trivial predictors on it."""
    study = train_and_eval(settings, style=prompt_style(base.tokenizer, settings.prompt_format))
    experiments = run.pack.experiments
    reach = Reach.of(
        settings,
        max_steps=[experiment.settings.max_steps for experiment in experiments],
        data_seeds=sorted({experiment.data_seed for experiment in experiments}),
    )
    sets = token_sets(study, settings, tokenizer=base.tokenizer, reach=reach)
    data = PackData(
        train=sets["train"], held_out=sets["eval"], test=sets.get("test"), forgetting=sets.get("forgetting")
    )
    for tokens in sets.values():
        run.emit(tokens.summary)
    config = base.model.config
    for score in trivial_scores(
        sets, settings, vocab_size=num_embeddings(config), num_positions=num_positions(config)
    ):
        run.emit(score)
    return data


def resolve_arms(run: PackRun, *, base: BaseModel, num_rows: int) -> list[TrainingArm]:
    """The arms that fit this model. An experiment that does not fit fails alone."""
    arms = []
    for experiment in run.pack.experiments:
        try:
            module_names = targets_of(experiment.settings, base.target_layers)
            without = left_out(
                module_names,
                layers=base.target_layers,
                target_modules=experiment.settings.target_modules,
            )
            length = steps_of(experiment.settings, num_rows=num_rows)
            experiment.settings.check_schedule(num_steps=length)
        except StudyError as error:
            run.end(failed(experiment.id, "user", error=error))
        else:
            arms.append(
                make_arm(
                    experiment,
                    module_names=module_names,
                    num_steps=length,
                    modules_left_out=tuple(without),
                )
            )
    return arms


def checkpoint_schedule(settings: Settings) -> CheckpointSchedule:
    """The checkpoint schedule of the settings."""
    minutes = settings.checkpoint_minutes
    return CheckpointSchedule(
        every_steps=settings.checkpoint_steps, every_seconds=None if minutes is None else 60.0 * minutes
    )


def measure_before(run: PackRun, loaded: LoadedPack, *, cache: BaseCache) -> None:
    """Measure the scores of the base model without adapter, and the cost of each arm alone."""
    emit_scores_before(run, loaded, cache=cache)
    profiles = profile_arms(
        loaded.make_engine,
        loaded.arms,
        base=loaded.base,
        largest=loaded.batch_plan.largest_step(),
        typical=loaded.batch_plan.typical_step(),
    )
    for profile in profiles:
        run.emit(profile)


def emit_scores_before(run: PackRun, loaded: LoadedPack, *, cache: BaseCache) -> None:
    """Score the base model and record it for every experiment. A fresh adapter of plain LoRA changes nothing.

    Full fine-tuning has changed nothing before its first step.

    A worker scores the same rows once. Other packs of the same base get the same numbers.

    Raises:
        StudyError: a score is not finite.
    """
    name, algorithms = loaded.make_engine.name, torch.are_deterministic_algorithms_enabled()
    keys = {split: (name, algorithms, split, tokens.rows.digest) for split, tokens in loaded.data.scored()}
    missing = [(split, tokens) for split, tokens in loaded.data.scored() if keys[split] not in cache.scores]
    if missing:
        first = loaded.arms[0]
        engine = loaded.make_engine([first if first.method.is_full else replace(first, method=PLAIN)])
        try:
            for split, tokens in missing:
                cache.scores[keys[split]] = tuple(
                    _scores_before(engine, split, tokens=tokens, base=loaded.base)
                )
        finally:
            engine.close()
    for key in keys.values():
        for score in cache.scores[key]:
            for arm in loaded.arms:
                run.emit(replace(score, experiment_id=arm.experiment_id))


def _scores_before(engine: Engine, split: str, *, tokens: TokenSet, base: BaseModel) -> Iterator[Score]:
    for score in CompletionLoss().evaluate(engine, tokens.rows, base=base, split=f"{split}_before"):
        if not is_finite(score):
            raise StudyError(
                f"quantization: {base.dtype}: the base model's own {score.metric} on {split} is not finite; "
                "try bf16 or fp32"
            )
        yield score


def train_to_pause_or_end(
    run: PackRun, checkpointer: Checkpointer, *, loaded: LoadedPack, stop: Stop, earlier: Sequence[Record]
) -> None:
    """Train, and score the validation rows on the way. `earlier` are the records of earlier attempts."""
    engine, num_steps, times = checkpointer.engine, loaded.batch_plan.num_steps, checkpointer.times
    for stretch in stretches(
        run.pack, engine.arms, start=engine.num_steps_done, num_steps=num_steps, earlier=earlier
    ):
        with stop.deferred():
            train(run, checkpointer, batch_plan=loaded.batch_plan, stop=stop, to=stretch.stop)
        scored = checkpointer.selection.without_stopped(stretch)
        if scored.splits:
            watch = Stopwatch()
            scores = scores_on_the_way(
                engine,
                scored,
                base=loaded.base,
                rows=loaded.data.held_out.rows,
                train_seconds=times.train_seconds,
            )
            with stop.deferred():  # a checkpoint has both the scores and what they decide, or neither
                run.emit_open(scores)
                checkpointer.selection.take(scores, engine=engine)
            times.validation_seconds += watch.lap()


def train(run: PackRun, checkpointer: Checkpointer, *, batch_plan: PackBatches, stop: Stop, to: int) -> None:
    """Train up to a step and record every step. An arm that diverges ends at once."""
    engine, times = checkpointer.engine, checkpointer.times

    def on_step(result: StepResult) -> None:
        synchronise(batch_plan.device)
        run.emit(
            PackStep(
                step=result.step,
                num_steps=batch_plan.num_steps,
                num_tokens=result.num_tokens,
                num_completion_tokens=result.num_completion_tokens,
                seconds=times.step(result.num_tokens),
                arms=result.arms,
            )
        )
        run.step = result.step
        for experiment_id in result.diverged:
            message = f"loss or gradient was not finite in step {result.step}"
            run.end(diverged(experiment_id, message, step=result.step))
        stop.check()
        checkpointer.after_step()

    times.watch.lap()
    engine.train(batch_plan.steps(start=engine.num_steps_done, stop=to), on_step=on_step)


def pause(run: PackRun, engine: Engine) -> None:
    """Record that all open experiments wait for the racing decision."""
    run.end_together(
        Outcome(experiment_id=arm.experiment_id, status="paused", step=engine.num_steps_done)
        for arm in engine.arms
    )


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
        for split, tokens in data.scored():
            if split != "forgetting":
                run.emit_open(exact_match.evaluate(engine, tokens.rows, base=base, split=split))


def save(run: PackRun, engine: Engine) -> None:
    """Write the adapters of all arms that did not diverge, each with its origin."""
    experiments = {experiment.id: experiment for experiment in run.pack.experiments}
    for arm in engine.arms:
        if arm.experiment_id not in run.ended:
            folder = run.folder / adapter_path(arm.experiment_id)
            engine.save_adapter(arm, folder)
            AdapterOrigin.of(experiments[arm.experiment_id]).write(folder)
            sync_tree(folder)


def _completed(arm: TrainingArm, selection: Selection) -> Outcome:
    return Outcome(
        experiment_id=arm.experiment_id,
        status="completed",
        step=selection.num_steps(arm),
        num_planned_steps=arm.num_steps,
        selected_step=selection.selected_step(arm.experiment_id),
        adapter_path=adapter_path(arm.experiment_id),
    )
