"""What each figure shows, as rows. Nothing is drawn here, so a test can read what a reader will see.

Intervals are one standard deviation over seeds to either side of the mean, or the range where the caption
says so; a single seed has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import decide
from lorastudy.report.document import (
    MAX_CURVES,
    CurveRow,
    Estimate,
    Figure,
    ForgettingRow,
    FrontierPoint,
    PairRow,
    Panel,
    ParameterRow,
)
from lorastudy.report.figures.evidence import predictions_figure, rates_figure, rows_figure, with_unit
from lorastudy.report.findings.wording import margin_was_set
from lorastudy.report.numbers import duration_unit, size_unit
from lorastudy.report.sections.overview import configuration_of
from lorastudy.stats.held_out_curves import HeldOutCurve
from lorastudy.stats.rate_choice import compared_arms
from lorastudy.stats.study import StudyArm
from lorastudy.stats.summary import (
    EXACT_MATCH,
    FORGETTING,
    FORGETTING_BEFORE,
    LOSS,
    ArmSummary,
    CurvePoint,
    Metric,
    Spread,
)

#: With more arms a figure would be taller than two pages; tables show all arms, figures the foremost ones.
MAX_DRAWN = 60


def study_figures(
    analysis: Analysis,
    curves: Mapping[str, Sequence[CurvePoint]],
    *,
    held_out: Mapping[str, HeldOutCurve] | None = None,
) -> tuple[Figure, ...]:
    """Every figure for which the study has data, in the order of the report."""
    drawn = _foremost(analysis)
    built = (
        pairs_figure(drawn),
        comparison_figure(drawn),
        frontier_figure(analysis),
        training_time_figure(drawn),
        adapter_size_figure(drawn),
        parameters_figure(drawn),
        predictions_figure(drawn),
        rates_figure(analysis),
        rows_figure(analysis),
        curves_figure(analysis, curves),
        held_out_figure(analysis, held_out or {}),
        forgetting_figure(drawn),
    )
    every = coloured_arms(analysis)
    figures = tuple(replace(figure, coloured=every) for figure in built if figure is not None)
    return (
        figures
        if drawn is analysis
        else tuple(_with_what_is_left_out(figure, analysis) for figure in figures)
    )


def first_figure(analysis: Analysis) -> Figure | None:
    """The chart that shows the answer: the paired differences, or without a pair the scores."""
    return pairs_figure(analysis) or comparison_figure(analysis)


def coloured_arms(analysis: Analysis) -> tuple[str, ...]:
    """All arms with a result, in the order of their colours. Those that are compared come first: the first colours differ most."""
    return tuple(dict.fromkeys([*curve_arms(analysis), *_names(analysis.completed)]))


def curve_arms(analysis: Analysis) -> tuple[str, ...]:
    """The arms whose training is drawn, each at its chosen rate; of more than a reader can distinguish, those of `_worth_a_curve`."""
    taken = {arm.name for arm in compared_arms(analysis.study, metric=analysis.primary)}
    names = tuple(name for name in _names(analysis.completed) if name in taken)
    return names if len(names) <= MAX_CURVES else _worth_a_curve(analysis, names)


def comparison_figure(analysis: Analysis) -> Figure | None:
    """Accuracy against memory across arms; along rank where the arms are a ladder of ranks."""
    arms = analysis.completed
    loss = Panel(label="Held-out loss (nats per token)", rows=_scores(arms, LOSS))
    match = Panel(label="Exact match (share)", rows=_scores(arms, EXACT_MATCH))
    primary = analysis.primary
    own = [Panel(label=with_unit(primary), rows=_scores(arms, primary))] * (
        primary in analysis.criterion.added_metrics
    )
    panels = tuple(panel for panel in (*own, loss, match, _memory_panel(arms)) if panel.rows)
    if not loss.rows:
        return None
    by_rank = analysis.returns is not None and len(analysis.returns.ladder) == len(arms)
    subject = "rank" if by_rank else "arm"
    return Figure(
        name="rank_comparison" if analysis.study.experiment_type == "rank_ablation" else "arm_comparison",
        kind="ranks" if by_rank else "dots",
        title=f"Accuracy and memory by {subject}",
        caption="Line or large dot: mean; bar: one standard deviation over seeds; small dots: single seeds. "
        "Peak memory is that of the arm training alone, measured once in each pack.",
        alt=f"Held-out loss and peak memory for each {subject}",
        arms=_names(arms),
        panels=panels,
        x_label="LoRA rank" if by_rank else "",
    )


def frontier_figure(analysis: Analysis) -> Figure | None:
    """Held-out loss against peak memory and step time; None if memory is not comparable.

    The arms that none beats on loss and memory are filled, and the arm that the study names is marked.
    """
    if not analysis.costs_are_comparable:
        return None
    unit, scale = _memory_unit(analysis.completed)
    times = [time.median for s in analysis.completed if (time := s.costs.step_seconds)]
    time_unit, time_scale = duration_unit(times)
    points = tuple(
        FrontierPoint(
            arm=summary.arm.name,
            memory=memory.mean / scale,
            time=None if (time := summary.costs.step_seconds) is None else time.median / time_scale,
            loss=loss.mean,
            loss_low=_low(loss),
            loss_high=_high(loss),
            n=loss.n,
            on_frontier=summary.arm.name in analysis.frontier,
            configuration=configuration_of(summary.arm, analysis.study),
        )
        for summary in analysis.completed
        if (loss := summary.score(LOSS)) and (memory := summary.costs.peak_memory_bytes)
    )
    if not points:
        return None
    decision = decide(analysis)
    marked_as = "recommended" if decision.is_recommended else "for now"
    named = "" if decision.arm is None else f" Ring: {marked_as}."
    size = " Area: time of one step, alone." if times else ""
    return Figure(
        name="efficiency_frontier",
        kind="frontier",
        title="Loss against memory and time",
        caption="Filled: on loss and memory alone no other arm is better on both, the efficiency frontier. Bar: one standard "
        f"deviation over seeds; arms whose bars overlap may change places.{size}{named}",
        alt="Scatter plot of held-out loss against peak memory; the frontier is "
        + ", ".join(analysis.frontier),
        arms=_names(analysis.completed),
        points=points,
        x_label=f"Peak memory, arm alone ({unit})",
        size_label=f"One step ({time_unit})" if times else "",
        marked=decision.arm,
        marked_as=marked_as,
    )


def training_time_figure(analysis: Analysis) -> Figure | None:
    """Time of the whole training, and of one step of the arm alone."""
    trained = {s.arm.name: s.costs.train_seconds for s in analysis.completed}
    steps = {s.arm.name: s.costs.step_seconds for s in analysis.completed}
    panels = (
        _range_panel(analysis, trained, label="Training time, share of the pack"),
        _range_panel(analysis, steps, label="One step, arm alone"),
    )
    return _bars(
        analysis,
        tuple(panel for panel in panels if panel.rows),
        name="training_time",
        title="Training time",
        caption="Bar: median; line: smallest to largest over seeds. Arms that train in one pack share its time "
        "equally, so only the step of the arm alone compares arms.",
    )


def adapter_size_figure(analysis: Analysis) -> Figure | None:
    """Bytes of the saved adapter."""
    sizes = {s.arm.name: s.costs.adapter_bytes for s in analysis.completed}
    unit, scale = size_unit(spread.maximum for spread in sizes.values() if spread)
    rows = _range_rows(analysis, sizes, scale=scale)
    has_full = any(summary.arm.is_full for summary in analysis.completed)
    return _bars(
        analysis,
        (
            Panel(
                label=f"{'Adapter or model' if has_full else 'Adapter'} file ({unit})",
                rows=rows,
                from_zero=True,
            ),
        )
        if rows
        else (),
        name="adapter_size",
        title="Adapter size",
        caption=f"Size of the saved adapter weights{', and of the whole model after full fine-tuning' if has_full else ''}.",
    )


def parameters_figure(analysis: Analysis) -> Figure | None:
    """Trainable against total parameters."""
    rows = tuple(
        ParameterRow(arm=s.arm.name, trainable=round(trainable.mean), total=round(total.mean))
        for s in analysis.completed
        if (trainable := s.costs.trainable_parameters) and (total := s.costs.total_parameters)
    )
    if not rows:
        return None
    return Figure(
        name="parameters",
        kind="parameters",
        title="Trainable and total parameters",
        caption="Filled: trainable; hollow: total, with the base model. Logarithmic axis; the percentage is the trainable "
        "share.",
        alt="Trainable and total parameters of each arm",
        arms=_names(analysis.completed),
        parameters=rows,
        x_label="Parameters",
    )


def curves_figure(analysis: Analysis, curves: Mapping[str, Sequence[CurvePoint]]) -> Figure | None:
    """Training loss over steps."""
    every = _names(analysis.completed)
    names = curve_arms(analysis)
    left_out = "" if names == every else f" Of {len(every)} arms, {_which_curves(analysis)}."
    rows = tuple(CurveRow(arm=name, point=point) for name in names for point in curves.get(name, ()))
    if not rows:
        return None
    return Figure(
        name="training_curves",
        kind="curves",
        title="Training loss",
        caption="Mean over seeds; band: one standard deviation to either side. Neighbouring steps are averaged "
        f"into one point.{left_out}",
        alt="Training loss over steps for each arm",
        arms=names,
        curves=rows,
        x_label="Optimizer step",
        y_label="Training loss (nats per token)",
    )


def held_out_figure(analysis: Analysis, curves: Mapping[str, HeldOutCurve]) -> Figure | None:
    """Held-out loss over steps, with a dot at each arm's lowest point."""
    every, names = _names(analysis.completed), curve_arms(analysis)
    left_out = "" if names == every else f" Of {len(every)} arms, {_which_curves(analysis)}."
    some_stopped = any(curve.stopped for curve in curves.values())
    ends = " A curve ends where its first seed stopped." if some_stopped else ""
    rows = tuple(
        CurveRow(arm=name, point=point, is_marked=point == curves[name].lowest)
        for name in names
        if name in curves
        for point in curves[name].points
    )
    if not rows:
        return None
    return Figure(
        name="held_out_curves",
        kind="held_out",
        title="Held-out loss",
        caption=f"Mean over seeds; band: one standard deviation to either side; dot: lowest mean.{ends}{left_out}",
        alt="Held-out loss over steps for each arm, lowest at "
        + ", ".join(f"step {row.point.step} for {row.arm}" for row in rows if row.is_marked),
        arms=tuple(dict.fromkeys(row.arm for row in rows)),
        curves=rows,
        x_label="Optimizer step",
        y_label="Held-out loss (nats per token)",
    )


def _which_curves(analysis: Analysis) -> str:
    if len(compared_arms(analysis.study, metric=analysis.primary)) <= MAX_CURVES:
        return "those at the learning rate at which they are compared"
    return "the reference and those on the frontier"


def _worth_a_curve(analysis: Analysis, names: Sequence[str]) -> tuple[str, ...]:
    """The reference and the arms on the frontier, as many as a reader can distinguish."""
    reference = analysis.reference.name if analysis.reference else None
    kept = [name for name in names if name in analysis.frontier or name == reference]
    return tuple(kept[:MAX_CURVES])


def _foremost(analysis: Analysis) -> Analysis:
    """The analysis limited to the arms that are drawn: the reference, the frontier, then those with the best scores."""
    if len(analysis.completed) <= MAX_DRAWN:
        return analysis
    sign = analysis.primary.cost_sign
    scored = [
        (sign * spread.mean, s.arm.name) for s in analysis.completed if (spread := s.score(analysis.primary))
    ]
    reference = [analysis.reference.name] if analysis.reference else []
    ordered = dict.fromkeys([*reference, *analysis.frontier, *(name for _, name in sorted(scored))])
    kept = frozenset(list(ordered)[:MAX_DRAWN])
    return replace(
        analysis,
        summaries=tuple(summary for summary in analysis.summaries if summary.arm.name in kept),
        comparisons={
            key: tuple(comparison for comparison in family if comparison.arm in kept)
            for key, family in analysis.comparisons.items()
        },
    )


def _with_what_is_left_out(figure: Figure, analysis: Analysis) -> Figure:
    """The figure with a note on which arms it shows; frontier and curves have their own notes."""
    if figure.kind in {"frontier", "curves", "held_out", "rates", "rows"}:
        return figure
    note = (
        f" Of {len(analysis.completed)} arms, the reference, the frontier and those with the best scores; the tables "
        "have all."
    )
    return replace(figure, caption=figure.caption + note)


def forgetting_figure(analysis: Analysis) -> Figure | None:
    """Loss on the base model's own domain, before and after training."""
    rows = tuple(
        ForgettingRow(
            arm=s.arm.name,
            before=before.mean,
            after=after.mean,
            low=_low(after),
            high=_high(after),
            n=after.n,
        )
        for s in analysis.completed
        if (before := s.score(FORGETTING_BEFORE)) and (after := s.score(FORGETTING))
    )
    if not rows:
        return None
    return Figure(
        name="forgetting",
        kind="forgetting",
        title="Forgetting",
        caption="Loss on the base model's own domain: hollow before training, filled after. The further "
        "to the right, the more was forgotten. Bar: one standard deviation over seeds.",
        alt="Base-domain loss of each arm before and after training",
        arms=_names(analysis.completed),
        forgetting=rows,
        x_label="Base-domain loss (nats per token)",
    )


def _bars(
    analysis: Analysis, panels: tuple[Panel, ...], *, name: str, title: str, caption: str
) -> Figure | None:
    if not panels:
        return None
    return Figure(
        name=name,
        kind="bars",
        title=title,
        caption=caption,
        alt=f"{title} of each arm",
        arms=_names(analysis.completed),
        panels=panels,
    )


def _names(summaries: Sequence[ArmSummary]) -> tuple[str, ...]:
    return tuple(summary.arm.name for summary in summaries)


def _scores(summaries: Sequence[ArmSummary], metric: Metric) -> tuple[Estimate, ...]:
    return tuple(
        _estimate(summary, spread, centre=spread.mean)
        for summary in summaries
        if (spread := summary.score(metric))
    )


def _memory_unit(summaries: Sequence[ArmSummary]) -> tuple[str, int]:
    return size_unit(memory.maximum for s in summaries if (memory := s.costs.peak_memory_bytes))


def _memory_panel(summaries: Sequence[ArmSummary]) -> Panel:
    unit, scale = _memory_unit(summaries)
    rows = tuple(
        _estimate(summary, _scaled(memory, scale), centre=memory.mean / scale)
        for summary in summaries
        if (memory := summary.costs.peak_memory_bytes)
    )
    return Panel(label=f"Peak memory ({unit})", rows=rows)


def _range_panel(analysis: Analysis, spreads: Mapping[str, Spread | None], *, label: str) -> Panel:
    unit, scale = duration_unit(spread.maximum for spread in spreads.values() if spread)
    return Panel(label=f"{label} ({unit})", rows=_range_rows(analysis, spreads, scale=scale), from_zero=True)


def _range_rows(
    analysis: Analysis, spreads: Mapping[str, Spread | None], *, scale: float
) -> tuple[Estimate, ...]:
    """Median with the range over seeds: times have outliers upwards, which a mean would follow."""
    rows = []
    for summary in analysis.completed:
        spread = spreads[summary.arm.name]
        if spread is not None:
            scaled = _scaled(spread, scale)
            several = scaled.n > 1
            rows.append(
                Estimate(
                    arm=summary.arm.name,
                    rank=_rank(summary.arm),
                    mean=scaled.median,
                    low=scaled.minimum if several else None,
                    high=scaled.maximum if several else None,
                    values=scaled.values,
                )
            )
    return tuple(rows)


def _rank(arm: StudyArm) -> int | None:
    """The arm's rank; full fine-tuning has none."""
    rank = arm.settings.get("lora_rank")
    return None if rank is None else int(rank)


def _scaled(spread: Spread, scale: float) -> Spread:
    scaled = Spread.of(value / scale for value in spread.values)
    assert scaled is not None
    return scaled


def _estimate(summary: ArmSummary, spread: Spread, *, centre: float) -> Estimate:
    return Estimate(
        arm=summary.arm.name,
        rank=_rank(summary.arm),
        mean=centre,
        low=_low(spread),
        high=_high(spread),
        values=spread.values,
    )


def _low(spread: Spread) -> float | None:
    return None if spread.sd is None else spread.mean - spread.sd


def _high(spread: Spread) -> float | None:
    return None if spread.sd is None else spread.mean + spread.sd


def pairs_figure(analysis: Analysis) -> Figure | None:
    """The forest plot of the comparisons that have verdicts; None if no two arms share a seed."""
    if analysis.reference is None:
        return None
    rows = tuple(
        PairRow(
            arm=comparison.arm,
            mean=comparison.mean,
            low=comparison.interval[0] if comparison.interval else None,
            high=comparison.interval[1] if comparison.interval else None,
            n=comparison.n,
            verdict=_short(comparison.verdict_words, arm=comparison.arm, reference=analysis.reference.name),
            decided=comparison.verdict in {"better", "as good within the margin"},
        )
        for comparison in analysis.primary_comparisons
        if comparison.mean is not None
    )
    if not rows:
        return None
    metric, reference = analysis.primary, analysis.reference.name
    title, unit = metric.title.lower(), f" ({metric.unit})" if metric.unit else ""
    worse_side = "right" if metric.lower_is_better else "left"
    margin = analysis.criterion.margin
    band = "" if margin is None else f" Band: {_margin(analysis)}."
    untuned = ", or it holds at untuned rates only" if analysis.untuned else ""
    spread = (
        "bar: 95 % interval" if any(row.low is not None for row in rows) else "one seed gives no interval"
    )
    return Figure(
        name="pairs",
        kind="pairs",
        title=f"Difference in {title} from the reference",
        caption=f"Dot: mean paired difference, arm minus {reference}; {spread}. Worse than {reference} lies to the "
        f"{worse_side}. Filled: a verdict was reached; hollow: none could be{untuned}.{band}",
        alt=f"Paired difference in {title} of each arm from {reference}, with the verdict beside it",
        arms=tuple(row.arm for row in rows),
        pairs=rows,
        margin=margin,
        x_label=f"{metric.title}, arm minus reference{unit}",
    )


def _margin(analysis: Analysis) -> str:
    """When the margin was set, and whether it is a share of the measured gain."""
    was_set = margin_was_set(analysis)
    text = f"the margin {'that was ' if was_set.startswith('set') else ''}{was_set}"
    if analysis.criterion.margin_share is None:
        return text
    comma = "," if "margin" in analysis.criterion.late_by_key else ""
    return f"{text}{comma} as a share of the gain, here of the measured one"


def _short(words: str, *, arm: str, reference: str) -> str:
    """The verdict beside a row, without the arms' names, which the plot shows already and which may be long."""
    for name, short in ((reference, "reference"), (arm, "this arm")):
        if words.startswith(f"{name} "):
            return f"{short} {words.removeprefix(f'{name} ')}"
    return words
