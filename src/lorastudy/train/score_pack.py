"""One scoring pack: loads stored adapters into the slots of an engine and measures the metrics that a suite adds.

It trains nothing. Rows, prompts and precision are those of the training. A score becomes a record as soon as it is
known, so a killed worker loses only what it was measuring.
"""

from collections.abc import Iterator

from lorastudy.data.load import train_and_eval
from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.choice import ChosenEngine, engine_factory, probe_of
from lorastudy.engine.environment import environment
from lorastudy.engine.loading import BaseCache, BaseModel, check_rows, default_device
from lorastudy.evaluation.added_scores import ScoredSplit, added_scores
from lorastudy.protocol.records import Outcome
from lorastudy.suite.settings import Settings
from lorastudy.train.outcomes import PackRun
from lorastudy.train.train_pack import resolve_arms


def score_pack(run: PackRun, *, cache: BaseCache) -> None:
    """Score the adapters of a pack, and emit a record for each arm, metric and split.

    Raises:
        StudyError: an adapter, a file of rows or a metric of the user's own cannot be used.
    """
    scoring = run.pack.scoring
    assert scoring is not None
    settings = run.pack.experiments[0].settings
    device = default_device()
    run.emit(environment(device))
    base = cache.get(settings, device=device)
    splits = list(_splits(settings, base=base))
    arms = resolve_arms(run, base=base, num_rows=1)  # the number of steps plays no part
    if not arms:
        return
    engine = _engine_factory(run, settings, base=base, arms=arms, splits=splits)(arms)
    try:
        for arm in engine.arms:
            engine.load_adapter(arm, run.folder / scoring.adapters[arm.experiment_id].folder)
        for split in splits:
            for score in added_scores(engine, split, scoring=scoring, settings=settings, base=base):
                run.emit(score)
    finally:
        engine.close()
    run.end_together(Outcome(experiment_id=arm.experiment_id, status="completed") for arm in engine.arms)


def _splits(settings: Settings, *, base: BaseModel) -> Iterator[ScoredSplit]:
    """The held-out rows, and the test rows if there are some."""
    study = train_and_eval(settings, style=prompt_style(base.tokenizer, settings.prompt_format))
    for name, rows in (("eval", study.held_out), ("test", study.test)):
        if rows is not None:
            split = ScoredSplit.of(name, rows.read(), settings=settings, base=base)
            check_rows(
                split.tokens.rows,
                config=base.model.config,
                base_model=base.name,
                tokenizer=base.tokenizer,
            )
            yield split


def _engine_factory(
    run: PackRun, settings: Settings, *, base: BaseModel, arms: list[TrainingArm], splits: list[ScoredSplit]
) -> ChosenEngine:
    return engine_factory(
        run.pack.engine,
        base=base,
        settings=settings,
        probe=probe_of(arms),
        longest_row=max(length for split in splits for length in split.tokens.rows.lengths()),
        on_fallback=lambda _: None,  # the training has recorded it
    )
