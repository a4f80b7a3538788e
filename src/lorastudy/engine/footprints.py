"""From counted steps of a few sizes to the polynomials that give the bytes of a step of any size.

Every moment of a step is one linear system: as many counted steps as there are unknown coefficients, and two
more, whose residual says whether the polynomial is the right one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch

from lorastudy.engine.counting import CountedStep, Event, count_loss, count_step, counted_arm
from lorastudy.engine.fake_model import (
    FEW_LAYERS,
    ONE_MORE,
    decoder_layers,
    hollow_base,
    layers_are_alike,
    meta_model,
    read_config,
)
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.targets import target_layers
from lorastudy.protocol.footprint import Footprint, Load, MicroBatch, Moment, Phase
from lorastudy.protocol.jobs import FootprintQuestion, Precision, Targets
from lorastudy.suite.targets import TargetLayer, adapted_modules, without_layer_number

#: (arms, eighths of the tokens with a label, rank of the first group, rank of the second). Where arms are to be of one
#: shape, all have the second rank. All vary, and not together.
_Point = tuple[int, int, int, int]
_POINTS: tuple[_Point, ...] = (
    (2, 1, 2, 4),
    (2, 2, 2, 4),
    (2, 1, 2, 12),
    (2, 3, 4, 8),
    (3, 1, 2, 4),
    (3, 2, 4, 12),
    (3, 3, 2, 8),
    (3, 1, 6, 8),
)
#: Loss rows (arms x labels) from which, and up to which, the place is sought where a chunk of the loss is full.
_FEWEST_ROWS, _MOST_ROWS = 16, 1 << 17
_NUM_SAMPLED_LOADS = 2000

LossGrowth = tuple[tuple[int, int], ...]
"""As `Footprint.loss_growth`."""
LossGrowths = dict[tuple[str, Precision], LossGrowth]
"""By model folder and precision."""


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """One choice of layers, counted at all points, with the coefficients of its moments by monomial and moment."""

    steps: tuple[CountedStep, ...]
    moments: tuple[Event, ...]
    coefficients: Any
    residual: float

    @property
    def keys(self) -> list[tuple[Phase, str]]:
        """What is done at each moment."""
        return [(event.phase, event.operation) for event in self.moments]

    def moment(self, index: int, *, one_layer_less: "tuple[_Counted, int] | None") -> Moment:
        """A moment as a polynomial; the same moment of the count with a layer less tells what a layer adds."""
        event = self.moments[index]
        own = self.coefficients[:, index]
        less, num_tensors_less = own, event.num_tensors
        if one_layer_less is not None:
            other, at = one_layer_less
            less, num_tensors_less = other.coefficients[:, at], other.moments[at].num_tensors
        return Moment(
            phase=event.phase,
            coefficients=tuple(map(float, own)),
            per_layer=tuple(map(float, own - less)),
            num_tensors=event.num_tensors,
            num_tensors_per_layer=event.num_tensors - num_tensors_less,
        )


def footprint(
    question: FootprintQuestion, *, device: torch.device, growths: LossGrowths | None = None
) -> Footprint:
    """Count a step of the folder's model at several sizes, and fit its moments.

    What the loss takes is the same for all questions about one base; `growths` keeps it from one to the next.

    Raises:
        ModelError: the model cannot be built, or the engine cannot train it.
    """
    trust_remote_code = question.trust_remote_code
    config = read_config(question.folder, trust_remote_code=trust_remote_code)
    meta = meta_model(config, trust_remote_code=trust_remote_code)
    names = _counted_layers(target_layers(meta), question.targets)
    found = decoder_layers(meta)
    num_layers = len(found[1]) if found else 0
    is_regular = num_layers > ONE_MORE and layers_are_alike(meta) and _in_all_layers(names, num_layers)

    @contextmanager
    def base_of(num_kept: int | None) -> Iterator[BaseModel]:
        with hollow_base(
            config, question.precision, num_layers=num_kept, trust_remote_code=trust_remote_code, device=device
        ) as base:  # fmt: skip
            yield base

    with base_of(FEW_LAYERS if is_regular else None) as base:
        few = _count(base, question, module_names=names)
        growth = _known_loss_growth(base, question, growths={} if growths is None else growths)
    if not is_regular:
        return _fitted(few, None, num_layers=num_layers, loss_growth=growth)
    with base_of(ONE_MORE) as base:
        more = _count(base, question, module_names=names)
    return _fitted(few, more, num_layers=num_layers, loss_growth=growth)


def _counted_layers(layers: Sequence[TargetLayer], targets: Sequence[Targets]) -> tuple[str, ...]:
    """What is adapted in the count: the modules that any arm adapts.

    The packed engine, which is counted, does not adapt parameters of experts. Where arms adapt nothing else, a step is
    counted with all other layers adapted in their place.
    """
    modules = {layer.name for layer in layers if not layer.is_parameter}
    names = tuple(name for name in adapted_modules(layers, targets) if name in modules)
    return names or tuple(layer.name for layer in layers if layer.name in modules and layer.left_out is None)


def _count(base: BaseModel, question: FootprintQuestion, *, module_names: Sequence[str]) -> _Counted:
    names = tuple(name for name in module_names if name in base.linear_layers)
    points = [_point(point, question) for point in _POINTS if not question.has_one_arm or point[0] == 2]
    steps = tuple(
        count_step(
            base,
            [counted_arm(number, names, r=r, dropout=question.has_dropout) for number, r in enumerate(ranks)],
            engine=question.engine,
            batch=batch,
            gradient_checkpointing=question.gradient_checkpointing,
        )
        for ranks, batch in points
    )
    aligned = _aligned(steps)
    loads = [_load(ranks, batch) for ranks, batch in points]
    coefficients, residual = _fit(
        loads, np.array([[e.num_bytes for e in events] for events in aligned], dtype=float)
    )
    return _Counted(steps=steps, moments=tuple(aligned[0]), coefficients=coefficients, residual=residual)


def _known_loss_growth(base: BaseModel, question: FootprintQuestion, *, growths: LossGrowths) -> LossGrowth:
    if question.engine == "reference":  # of which the loss is counted like all else
        return ((1, 0), (2, 0))
    key = (question.folder, question.precision)
    if key not in growths:
        growths[key] = _loss_growth(base)
    return growths[key]


def _loss_growth(base: BaseModel) -> LossGrowth:
    """What the loss takes, at the places where it bends: when the first chunk is full, and when the second is.

    With a second chunk what the first one made is still there for a moment; from the third on nothing changes.
    """
    counted: dict[int, int] = {}

    def growth(rows: int) -> int:
        if rows not in counted:
            counted[rows] = count_loss(base, num_rows=rows)
        return counted[rows]

    first, second = _FEWEST_ROWS // 2, _FEWEST_ROWS
    slope = (growth(second) - growth(first)) / (second - first)

    def is_one_chunk(rows: int) -> bool:
        return abs(growth(rows) - growth(first) - slope * (rows - first)) < slope

    rows = second
    while rows < _MOST_ROWS and is_one_chunk(2 * rows):
        rows *= 2
    if rows >= _MOST_ROWS:
        return tuple((at, growth(at)) for at in (first, second))
    full, over = rows, 2 * rows
    while over - full > 1:
        middle = (full + over) // 2
        full, over = (middle, over) if is_one_chunk(middle) else (full, middle)
    second_fills = {full + full * eighth // 8 for eighth in range(1, 9)}
    bends = sorted({first, full, over, *second_fills, 2 * full + 1, 3 * full, 4 * full})
    return tuple((at, growth(at)) for at in bends)


def _point(point: _Point, question: FootprintQuestion) -> tuple[tuple[int, ...], MicroBatch]:
    """The ranks of the arms, and the rows in question with some labels."""
    num_arms, eighths, first, second = point
    lengths = tuple(sorted(question.row_lengths))
    num_labels = max(1, min(sum(lengths) * eighths // 8, sum(lengths) - len(lengths)))
    batch = MicroBatch(row_lengths=lengths, num_labels=num_labels)
    if question.has_one_arm:
        return (second,), batch
    rest = (second,) * (num_arms - 1)
    return ((second, *rest) if question.has_one_group else (first, *rest)), batch


def _aligned(steps: Sequence[CountedStep]) -> list[list[Event]]:
    """The steps' events side by side, as the first step has them.

    What is done arm by arm is done more often with more arms. There the most that is held in between stands for
    all of it.
    """
    keys = [tuple((event.phase, event.operation) for event in step.events) for step in steps]
    places = {key: list(_places(keys[0], key)) for key in set(keys)}
    return [
        [max(step.events[start:stop], key=lambda event: event.num_bytes) for start, stop in places[key]]
        for step, key in zip(steps, keys, strict=True)
    ]


def _places(reference: Sequence[object], other: Sequence[object]) -> Iterator[tuple[int, int]]:
    """For each event of the reference the events of the other step that stand for it; every one stands somewhere."""
    if reference == other:
        yield from ((index, index + 1) for index in range(len(other)))
        return
    matches = SequenceMatcher(a=reference, b=other, autojunk=False).get_opcodes()
    for number, (tag, i, j, start, stop) in enumerate(matches):
        following = matches[number + 1] if number + 1 < len(matches) else None
        inserted = following[4] - following[3] if following and following[0] == "insert" else 0
        for index in range(j - i):
            if tag == "equal":
                is_last = index == j - i - 1
                yield start + index, start + index + 1 + (inserted if is_last else 0)
            else:  # the other step does it otherwise, or not at all
                yield (start, stop) if stop > start else (max(0, start - 1), max(1, start))


def _load(ranks: Sequence[int], batch: MicroBatch) -> Load:
    return Load(
        num_arms=len(ranks),
        num_tokens=batch.num_tokens,
        num_labels=batch.num_labels,
        num_squares=sum(length**2 for length in batch.row_lengths),
        rank=max(r * count for r, count in Counter(ranks).items()),
        rank_all=sum(ranks),
    )


def _fit(loads: Sequence[Load], counted: Any) -> tuple[Any, float]:
    """Coefficients by monomial and moment, and the largest residual relative to the peak of all steps.

    The rows are always those in question, so some monomials cannot be told apart (1 and N); they share what they
    explain, by least squares of least norm, and at these rows it is the same which of them it is.
    """
    design = np.array([load.monomials() for load in loads])
    scale = np.abs(design).max(axis=0)
    solved, *_ = np.linalg.lstsq(design / scale, counted, rcond=1e-9)
    residual = np.abs(design / scale @ solved - counted).max() / counted.max()
    return solved / scale[:, None], float(residual)


def _fitted(few: _Counted, more: _Counted | None, *, num_layers: int, loss_growth: LossGrowth) -> Footprint:
    """The footprint of the whole model from one or two counts of its layers."""
    counted = more or few
    if more is None:
        moments = [few.moment(index, one_layer_less=None) for index in range(len(few.moments))]
    else:
        moments = [
            more.moment(index, one_layer_less=(few, at)) for index, at in enumerate(_same_moments(few, more))
        ]
    (at_loss,) = (moment for moment in moments if moment.phase == "loss")
    first = counted.steps[0]
    whole = Footprint(
        moments=tuple(moment for moment in moments if moment.phase != "loss"),
        at_loss=at_loss,
        num_further_layers=0 if more is None else num_layers - ONE_MORE,
        loss_growth=loss_growth,
        resident_bytes_per_parameter=first.resident_bytes / first.num_parameters,
        largest_residual=max(few.residual, counted.residual),
    )
    return replace(whole, moments=_that_can_be_greatest(whole))


def _same_moments(few: _Counted, more: _Counted) -> list[int]:
    """For each moment of the larger count the moment of the smaller one that differs from it by a layer.

    The two steps do the same up to the last layer's forward pass, and again from its backward pass on; between, the
    larger one has a layer more on either side of the loss. The moments of that layer, in which all layers hold what
    they keep, differ by as much as the beginning of the loss does: they stand beside those of the layer before, on
    the side of the loss.
    """
    short, long = few.keys, more.keys
    head = _num_equal(short, long)
    tail = _num_equal(short[head:][::-1], long[head:][::-1])
    loss_few = next(index for index, (phase, _) in enumerate(short) if phase == "loss")
    loss_more = next(index for index, (phase, _) in enumerate(long) if phase == "loss")
    before, after = loss_more - loss_few, (len(long) - loss_more) - (len(short) - loss_few)
    assert head <= loss_few < len(short) - tail, "the loss is part of what the two steps do alike"
    places = []
    for index in range(len(long)):
        if index < head:
            places.append(index)
        elif index >= len(long) - tail:
            places.append(index - before - after)
        elif index <= loss_more:
            places.append(max(0, index - before))
        else:
            places.append(min(len(short) - 1, loss_few + index - loss_more))
    return places


def _that_can_be_greatest(whole: Footprint) -> tuple[Moment, ...]:
    """The moments that are the greatest of all under some load, out of many drawn from wide ranges."""
    draw = np.random.default_rng(0)

    def sizes(low: float, high: float) -> Any:
        return np.exp(draw.uniform(np.log(low), np.log(high), _NUM_SAMPLED_LOADS))

    tokens = sizes(8, 65536).astype(int)
    arms, ranks = sizes(1, 64).astype(int), sizes(1, 512)
    labels, lengths = (tokens * draw.uniform(0.02, 1, _NUM_SAMPLED_LOADS)).astype(int), sizes(8, 8192)
    found: dict[int, Moment] = {}
    design = np.stack(
        [
            np.array(
                Load(
                    num_arms=int(k), num_tokens=int(n), num_labels=int(m), num_squares=int(n * min(n, s)),
                    rank=k * r, rank_all=k * r,
                ).monomials()
            )
            for k, n, m, s, r in zip(arms, tokens, labels, lengths, ranks, strict=True)
        ]
    )  # fmt: skip
    own = np.array(
        [np.array(m.coefficients) + whole.num_further_layers * np.array(m.per_layer) for m in whole.moments]
    )
    for index in sorted(set((design @ own.T).argmax(axis=1).tolist())):
        found[index] = whole.moments[index]
    return tuple(found.values())


def _num_equal(one: Sequence[object], other: Sequence[object]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _in_all_layers(module_names: Sequence[str], num_layers: int) -> bool:
    """Whether each layer has the same modules adapted."""
    counts = Counter(without_layer_number(name) for name in module_names)
    return all(count == num_layers for name, count in counts.items() if "*" in name)
