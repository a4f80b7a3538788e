"""The life of one pack: loaded, profiled, trained, evaluated, saved. `run_pack` is the story.

What is measured is emitted as a record when it is known. What goes wrong with one arm ends that arm here; what
goes wrong with the pack is for the worker to catch. A pack that was begun before goes on from its checkpoint, and
is not measured again.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorastudy.data.batches import steps_of
from lorastudy.engine.arms import Arm, Engine, EngineFactory, StepResult, make_arm
from lorastudy.engine.batch_plan import Feed, make_feed
from lorastudy.engine.choice import ChosenEngine, engine_factory
from lorastudy.engine.environment import environment
from lorastudy.engine.loading import BaseModel, check_rows, default_device
from lorastudy.engine.meter import MemoryMeter, profile_arms, synchronise
from lorastudy.errors import StudyError
from lorastudy.evaluation.exact_match import ExactMatch
from lorastudy.evaluation.perplexity import CompletionLoss
from lorastudy.protocol.atomic_folder import sync_tree
from lorastudy.protocol.checkpoints import CHECKPOINTS_NAME
from lorastudy.protocol.jobs import AdapterOrigin, adapter_path
from lorastudy.protocol.records import FELL_BACK, Incident, Outcome, PackProfile, PackStep
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import left_out, targets_of
from lorastudy.train.base_cache import BaseCache
from lorastudy.train.checkpointing import Keeper
from lorastudy.train.data import PackData, load_data
from lorastudy.train.outcomes import PackRun, diverged, failed, is_finite
from lorastudy.train.pace import CheckpointTimes, Pace, Stopwatch
from lorastudy.train.resuming import find_resumption
from lorastudy.train.rungs import pause, scores_at, stretches
from lorastudy.train.stopping import Stop


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A pack that is ready to be measured or to go on."""

    base: BaseModel
    data: PackData
    arms: list[Arm]
    feed: Feed
    make_engine: ChosenEngine


def run_pack(run: PackRun, *, cache: BaseCache, stop: Stop) -> None:
    """Load, profile, train, evaluate, save; emit a record of each as it comes. A pack that is to pause ends there.

    Raises:
        Stopped: the worker was asked to leave; what was trained is in a checkpoint.
    """
    settings = run.pack.experiments[0].settings
    device = default_device()
    here = environment(device)
    run.emit(here)
    clock = Stopwatch()
    loaded = load(run, settings, cache=cache, device=device)
    if loaded is None:
        return
    feed, arms, make_engine = loaded.feed, loaded.arms, loaded.make_engine
    pace, times = Pace(), checkpoint_times(settings)
    resumption = find_resumption(
        run, arms=arms, environment=here, engine=make_engine.name, num_steps=len(feed.plan)
    )
    if resumption is None:
        measure_before(run, loaded)
    else:
        resumption.carry_over(run, pace=pace, times=times)
    engine = make_engine(arms)
    try:
        if resumption is not None:
            engine.restore(resumption.state)
        keeper = Keeper(run=run, engine=engine, environment=here, pace=pace, times=times)
        pace.load_seconds += clock.lap()
        with keeper.saving_when_stopped():
            said = () if resumption is None else resumption.records
            with MemoryMeter(device) as memory:
                for stretch in stretches(
                    run, start=engine.num_steps_done, num_steps=len(feed.plan), said=said
                ):
                    with stop.deferred():
                        train(run, keeper, feed=feed, stop=stop, to=stretch.stop)
                    if stretch.rung is not None:
                        watch = Stopwatch()
                        scores = scores_at(engine, rung=stretch.rung, base=loaded.base, data=loaded.data)
                        pace.rung_seconds += watch.lap()
                        with stop.deferred():
                            run.emit_open(scores)
            clock.lap()
            if run.pack.pause_at is not None:
                keeper.save()
                with stop.deferred():
                    pause(run, engine)
                return
            evaluate(run, engine, base=loaded.base, data=loaded.data)
            save(run, engine)
    finally:
        engine.close()
    run.emit(times.profile())
    run.emit(
        PackProfile(
            engine=engine.name,
            num_arms=len(arms),
            memory_kind=memory.kind,
            peak_memory_bytes=memory.peak_bytes,
            median_step_seconds=pace.median_step_seconds,
            tokens_per_second=pace.tokens_per_second,
            load_seconds=pace.load_seconds,
            train_seconds=pace.train_seconds,
            eval_seconds=pace.rung_seconds + clock.lap(),
        )
    )
    with stop.deferred():
        run.end_together(_completed(arm) for arm in engine.arms)
    shutil.rmtree(run.folder / CHECKPOINTS_NAME, ignore_errors=True)


def load(run: PackRun, settings: Settings, *, cache: BaseCache, device: torch.device) -> Loaded | None:
    """The base, the data and the arms that fit it; None where none does."""
    base = cache.get(settings, device=device)
    data = load_data(run, settings, base=base)
    sets = (data.train, *(tokens for _, tokens in data.scored()))
    for tokens in sets:
        check_rows(tokens.rows, config=base.model.config, base_model=base.name, tokenizer=base.tokenizer)
    arms = resolve_arms(run, base=base, num_rows=len(data.train.rows))
    if not arms:
        return None
    return Loaded(
        base=base,
        data=data,
        arms=arms,
        feed=make_feed(
            data.train,
            settings,
            data_seed=run.pack.experiments[0].data_seed,
            num_steps=max(arm.num_steps for arm in arms),
            device=device,
        ),
        make_engine=engine_factory(
            run.pack.engine,
            base=base,
            settings=settings,
            probe=replace(
                arms[0],
                module_names=tuple(dict.fromkeys(name for arm in arms for name in arm.module_names)),
            ),
            longest_row=max(len(row.input_ids) for tokens in sets for row in tokens.rows),
            on_fallback=lambda reason: run.emit(Incident(kind="fell_back", message=f"{FELL_BACK}{reason}")),
        ),
    )


def resolve_arms(run: PackRun, *, base: BaseModel, num_rows: int) -> list[Arm]:
    """The arms that fit this model; an experiment that does not fit it fails alone."""
    arms = []
    for experiment in run.pack.experiments:
        try:
            module_names = targets_of(experiment.settings, base.target_layers)
            without = left_out(
                module_names,
                layers=base.target_layers,
                target_modules=experiment.settings.target_modules,
            )
        except StudyError as error:
            run.end(failed(experiment.id, "user", error=error))
        else:
            length = steps_of(experiment.settings, num_rows=num_rows)
            arms.append(
                make_arm(
                    experiment,
                    module_names=module_names,
                    num_steps=length,
                    modules_left_out=tuple(without),
                )
            )
    return arms


def checkpoint_times(settings: Settings) -> CheckpointTimes:
    """How often the pack is saved."""
    minutes = settings.checkpoint_minutes
    return CheckpointTimes(
        every_steps=settings.checkpoint_steps, every_seconds=None if minutes is None else 60.0 * minutes
    )


def measure_before(run: PackRun, loaded: Loaded) -> None:
    """What is known before training: the base model's own scores, and what each arm costs alone."""
    emit_scores_before(run, loaded.make_engine, arms=loaded.arms, base=loaded.base, data=loaded.data)
    profiles = profile_arms(
        loaded.make_engine,
        loaded.arms,
        base=loaded.base,
        largest=loaded.feed.largest_step(),
        typical=loaded.feed.typical_step(),
    )
    for profile in profiles:
        run.emit(profile)


def emit_scores_before(
    run: PackRun, make_engine: EngineFactory, *, arms: Sequence[Arm], base: BaseModel, data: PackData
) -> None:
    """Score the base model as it came, once, on record for every experiment; a fresh adapter changes nothing."""
    engine = make_engine(arms[:1])
    try:
        for split, tokens in data.scored():
            for score in CompletionLoss().evaluate(engine, tokens.rows, base=base, split=f"{split}_before"):
                if not is_finite(score):
                    raise StudyError(
                        f"quantization: {base.dtype}: the base model's own {score.metric} on {split} is not finite; "
                        "try bf16 or fp32"
                    )
                for arm in arms:
                    run.emit(replace(score, experiment_id=arm.experiment_id))
    finally:
        engine.close()


def train(run: PackRun, keeper: Keeper, *, feed: Feed, stop: Stop, to: int) -> None:
    """Train up to a step, recording every one; an arm that diverges ends here and now."""
    engine, pace = keeper.engine, keeper.pace

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
        run.step = result.step
        for experiment_id in result.diverged:
            message = f"loss or gradient was not finite in step {result.step}"
            run.end(diverged(experiment_id, message, step=result.step))
        stop.check()
        keeper.after_step()

    pace.watch.lap()
    engine.train(feed.steps(start=engine.num_steps_done, stop=to), on_step=on_step)


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


def _completed(arm: Arm) -> Outcome:
    return Outcome(
        experiment_id=arm.experiment_id,
        status="completed",
        step=arm.num_steps,
        adapter_path=adapter_path(arm.experiment_id),
    )
