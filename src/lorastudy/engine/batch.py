"""Micro-batches without padding (rows laid end to end, each with its own positions), and the rows of every step.

    N  tokens of all rows       M  labelled tokens      B  rows
    K  arms of the pack         T  tokens of all rows of all arms

Either all arms see the rows of a `Batch`, or each arm has its own rows (`ArmBatches`, `arm_layout.py`).

Rows are sorted by length, and rows of equal length form a bucket. Attention takes a bucket in one call and needs
neither padding nor a mask. Padding rows of similar length into fewer calls was slower on a CPU at every length
(docs/log.md).
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorastudy.data.batches import grouped_by_length, micro_batches, rows_in_order, rows_per_group
from lorastudy.data.tokenise import IGNORED, TokenRow, TokenSet
from lorastudy.engine.arm_layout import ArmLayout, Spans, runs_of
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Consecutive rows of one length. Attention takes them in one call."""

    num_rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""
        return self.num_rows * self.length


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows laid end to end, on the device."""

    input_ids_N: Tensor
    position_ids_N: Tensor
    label_index_M: Tensor
    """Positions in N whose hidden states predict `targets_M`. A position is one before its target."""
    targets_M: Tensor
    label_row_M: Tensor
    """The row of each label, as numbered by the caller."""
    row_starts_B: Tensor
    """The first position of each row."""
    buckets: tuple[Bucket, ...]
    layout: ArmLayout | None = None
    """Where each arm's rows lie, if arms have rows of their own; None if every arm sees all rows."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens. There is no padding."""
        return self.input_ids_N.numel()

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that carry a loss."""
        return self.targets_M.numel()


def assemble(rows: Sequence[TokenRow], *, device: torch.device) -> Batch:
    """A batch of the rows end to end, shortest first. `label_row_M` numbers them in the given order."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    ids: list[int] = []
    positions: list[int] = []
    label_index: list[int] = []
    targets: list[int] = []
    label_row: list[int] = []
    row_starts: list[int] = []
    for row_number in order:
        row = rows[row_number]
        start = len(ids)
        row_starts.append(start)
        ids.extend(row.input_ids)
        positions.extend(range(len(row.input_ids)))
        for place, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                label_index.append(start + place)
                targets.append(label)
                label_row.append(row_number)
    tensors = _on_device((ids, positions, label_index, targets, label_row, row_starts), device=device)
    return Batch(
        input_ids_N=tensors[0],
        position_ids_N=tensors[1],
        label_index_M=tensors[2],
        targets_M=tensors[3],
        label_row_M=tensors[4],
        row_starts_B=tensors[5],
        buckets=_buckets(len(rows[number].input_ids) for number in order),
    )


def _buckets(lengths: Iterable[int]) -> tuple[Bucket, ...]:
    """The buckets of rows of these lengths, which are sorted."""
    return tuple(
        Bucket(num_rows=len(list(same)), length=length) for length, same in itertools.groupby(lengths)
    )


def _on_device(lists: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, ...]:
    """The lists as tensors on the device, in one copy."""
    flat = torch.tensor([number for part in lists for number in part])
    return torch.split(_copied(flat, device=device), [len(part) for part in lists])


def _copied(flat: Tensor, *, device: torch.device) -> Tensor:
    """The tensor of the host on the device. The host does not wait for a GPU, since the source is pinned."""
    if device.type == "cuda":
        flat = flat.pin_memory()
    return flat.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class ArmBatches:
    """A micro-batch in which arms have rows of their own. The batches are on the CPU.

    Arms with the same batch object see the same rows. An arm that is not in `by_arm` has no rows in this micro-batch:
    its step has fewer micro-batches, or its training has ended.
    """

    by_arm: Mapping[str, Batch]
    """By experiment id."""

    def of(self, experiment_id: str, *, device: torch.device) -> Batch | None:
        """One arm's rows as a batch of its own, on the device; None if it has none."""
        batch = self.by_arm.get(experiment_id)
        return None if batch is None else _moved(batch, device=device)

    def in_one_sequence(
        self, experiment_ids: Sequence[str], *, device: torch.device, is_padded: bool
    ) -> Batch:
        """The rows of these arms end to end, arm after arm, on the device. `is_padded` is for the layout."""
        rows_K = [self.by_arm.get(experiment_id) for experiment_id in experiment_ids]
        given = [batch for batch in rows_K if batch is not None]
        token_starts = _starts([batch.num_tokens for batch in given])
        lengths = [
            bucket.length for batch in given for bucket in batch.buckets for _ in range(bucket.num_rows)
        ]
        row_starts_B = _shifted([batch.row_starts_B for batch in given], by=token_starts)
        order_T, buckets = _by_length(lengths, row_starts_B)
        sizes_K = tuple(0 if batch is None else batch.num_tokens for batch in rows_K)
        label_sizes_K = tuple(0 if batch is None else batch.num_completion_tokens for batch in rows_K)
        parts = [
            torch.cat([batch.input_ids_N for batch in given]),
            torch.cat([batch.position_ids_N for batch in given]),
            _shifted([batch.label_index_M for batch in given], by=token_starts),
            torch.cat([batch.targets_M for batch in given]),
            torch.cat([batch.label_row_M for batch in given]),
            row_starts_B,
            order_T,
            torch.empty_like(order_T).scatter_(0, order_T, torch.arange(len(order_T))),
            *_arms_and_places(sizes_K),
            *_arms_and_places(label_sizes_K),
        ]
        moved = torch.split(_copied(torch.cat(parts), device=device), [len(part) for part in parts])
        return Batch(
            input_ids_N=moved[0],
            position_ids_N=moved[1],
            label_index_M=moved[2],
            targets_M=moved[3],
            label_row_M=moved[4],
            row_starts_B=moved[5],
            buckets=buckets,
            layout=ArmLayout(
                tokens=Spans(sizes_K=sizes_K, arm_T=moved[8], place_T=moved[9], num_K=moved[10]),
                labels=Spans(sizes_K=label_sizes_K, arm_T=moved[11], place_T=moved[12], num_K=moved[13]),
                runs=runs_of(rows_K),
                order_T=moved[6],
                inverse_T=moved[7],
                is_padded=is_padded,
            ),
        )


MicroBatch = Batch | ArmBatches
"""Rows that every arm sees, or each arm's own rows."""


def _moved(batch: Batch, *, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    return replace(batch, **tensors)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)][:-1]


def _shifted(places: Sequence[Tensor], *, by: Sequence[int]) -> Tensor:
    """Places in each batch as places in the sequence of all batches, which begin at `by`."""
    return torch.cat([own + start for own, start in zip(places, by, strict=True)])


def _by_length(lengths: Sequence[int], row_starts_B: Tensor) -> tuple[Tensor, tuple[Bucket, ...]]:
    """The tokens in the order of their rows' lengths, and the buckets in that order."""
    lengths_B = torch.tensor(lengths)
    sorted_B, rows_B = lengths_B.sort(stable=True)
    buckets = _buckets(sorted_B.tolist())
    order = [
        (row_starts_B[own_B, None] + torch.arange(bucket.length)).flatten()
        for bucket, own_B in zip(
            buckets, torch.split(rows_B, [bucket.num_rows for bucket in buckets]), strict=True
        )
    ]
    return torch.cat(order), buckets


def _arms_and_places(sizes_K: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The arm of each token, its place in the arm's span, and the sizes of the spans."""
    counts = torch.tensor(sizes_K)
    arms_T = torch.repeat_interleave(torch.arange(len(sizes_K)), counts)
    return arms_T, torch.arange(len(arms_T)) - (counts.cumsum(0) - counts)[arms_T], counts


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The rows of every optimizer step in one order. Steps are assembled on demand."""

    train: TokenSet
    row_numbers: list[list[list[int]]]
    """Row numbers by optimizer step, by micro-batch, and by position in it."""
    device: torch.device

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.row_numbers)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        return [
            assemble([self.train.rows[row] for row in rows], device=self.device)
            for rows in self.row_numbers[number]
        ]

    def steps(self, *, start: int = 0, stop: int | None = None) -> Iterator[list[Batch]]:
        """The steps from `start` up to `stop`, or to the end."""
        return (self.step(number) for number in range(start, self.num_steps if stop is None else stop))

    def typical_step(self) -> list[Batch]:
        """The first step with the median number of tokens; the lower of two medians."""
        sizes = [sum(map(self._num_tokens, micro_batches)) for micro_batches in self.row_numbers]
        return self.step(sizes.index(statistics.median_low(sizes)))

    def largest_step(self) -> list[Batch]:
        """The step whose biggest micro-batch has the most tokens."""

        def size(number: int) -> int:
            return max(map(self._num_tokens, self.row_numbers[number]))

        return self.step(max(range(self.num_steps), key=size))

    def _num_tokens(self, rows: Sequence[int]) -> int:
        return sum(map(self.train.rows.num_tokens, rows))


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """The rows of one arm: the number of its plan in the pack, and the steps that it takes of it."""

    experiment_id: str
    plan: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class PackBatches:
    """The rows of every step of a pack: a plan for each order of the rows, and the plan of each arm."""

    plans: tuple[BatchPlan, ...]
    arms: tuple[PlannedRows, ...]
    device: torch.device

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the arm with the most."""
        return max(plan.num_steps for plan in self.plans)

    def steps(self, *, start: int = 0, stop: int | None = None) -> Iterator[Sequence[MicroBatch]]:
        """The steps from `start` up to `stop`, or to the end.

        With one plan all arms see the same batches. With several, an arm that has taken its steps has no rows any more.
        """
        if len(self.plans) == 1:
            yield from self.plans[0].steps(start=start, stop=stop)
            return
        for number in range(start, self.num_steps if stop is None else stop):
            yield self._step(number)

    def typical_step(self) -> list[Batch]:
        """The typical step of the first plan."""
        return [_moved(batch, device=self.device) for batch in self.plans[0].typical_step()]

    def largest_step(self) -> list[Batch]:
        """The step whose biggest micro-batch has the most tokens of all plans."""
        steps = [plan.largest_step() for plan in self.plans]
        largest = max(steps, key=lambda step: max(batch.num_tokens for batch in step))
        return [_moved(batch, device=self.device) for batch in largest]

    def _step(self, number: int) -> list[ArmBatches]:
        training = [arm for arm in self.arms if arm.num_steps > number]
        batches = {plan: self.plans[plan].step(number) for plan in {arm.plan for arm in training}}
        return [
            ArmBatches(
                by_arm={
                    arm.experiment_id: batches[arm.plan][place]
                    for arm in training
                    if place < len(batches[arm.plan])
                }
            )
            for place in range(max(map(len, batches.values())))
        ]


def plan_pack(
    train: TokenSet,
    settings: Settings,
    *,
    data_seeds: Mapping[str, int],
    num_steps: Mapping[str, int],
    device: torch.device,
) -> PackBatches:
    """The rows of a pack's experiments, by their ids: each in the order of its data seed, for its number of steps."""
    seeds = sorted(set(data_seeds.values()))
    plans = tuple(
        plan_batches(
            train,
            settings,
            data_seed=seed,
            num_steps=max(num_steps[key] for key in num_steps if data_seeds[key] == seed),
            device=device if len(seeds) == 1 else torch.device("cpu"),
        )
        for seed in seeds
    )
    arms = tuple(
        PlannedRows(experiment_id=key, plan=seeds.index(data_seeds[key]), num_steps=number)
        for key, number in num_steps.items()
    )
    return PackBatches(plans=plans, arms=arms, device=device)


def plan_batches(
    train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int, device: torch.device
) -> BatchPlan:
    """The rows in the order of a `data_seed` (`Experiment.data_seed`), cut into micro-batches and steps."""
    size, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    num_rows = num_steps * size * accumulation
    grouped = rows_per_group(train.num_given, rows_per_step=size * accumulation)
    order = rows_in_order(
        train.num_given,
        data_seed=data_seed,
        num_rows_needed=-(-num_rows // grouped) * grouped if settings.group_by_length else num_rows,
        refused=train.refused,
        places=train.places,
    )
    if settings.group_by_length:
        order = grouped_by_length(order, num_tokens=train.rows.num_tokens, rows_per_group=grouped)[:num_rows]
    row_numbers = micro_batches(order, batch_size=size, accumulation=accumulation)
    return BatchPlan(train=train, row_numbers=row_numbers, device=device)
