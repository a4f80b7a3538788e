"""The life of one pack: loaded, profiled, trained, evaluated, saved. `run_pack` is the story.

What is measured is emitted as a record when it is known. What goes wrong with one arm ends that arm here; what
goes wrong with the pack is for the worker to catch.
"""

from collections.abc import Sequence
from dataclasses import replace

from lorastudy.engine.arms import Arm, Engine, EngineFactory, StepResult, make_arm
from lorastudy.engine.choice import engine_factory
from lorastudy.engine.environment import environment
from lorastudy.engine.feed import Feed, make_feed, steps_of
from lorastudy.engine.loading import BaseModel, check_lengths, default_device
from lorastudy.engine.meter import MemoryMeter, profile_arms, synchronise
from lorastudy.engine.targets import resolve_targets
from lorastudy.errors import StudyError
from lorastudy.evaluation.exact_match import ExactMatch
from lorastudy.evaluation.perplexity import CompletionLoss
from lorastudy.jobs import AdapterOrigin
from lorastudy.records import Outcome, PackProfile, PackStep
from lorastudy.training.base_cache import BaseCache
from lorastudy.training.data import PackData, load_data
from lorastudy.training.outcomes import PackRun, diverged, failed, is_finite
from lorastudy.training.pace import Pace, Stopwatch

#: Steps over which an arm's speed alone is measured.
NUM_TIMED_STEPS = 3


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
            run.end(failed(experiment.id, "user", error=error))
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
                if not is_finite(score):
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
            run.end(diverged(experiment_id, message, step=result.step))

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
