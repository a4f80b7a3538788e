"""A micro-batch without padding: rows laid end to end, each with its own positions.

    N  tokens of all rows       M  labelled tokens       B  rows of one bucket, padded to length L

Rows are sorted by length. Neighbours of like length form a bucket, and only inside attention is a bucket
padded to its longest row: causal attention never looks right, so padding behind a row's end needs no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorastudy.data.tokenise import IGNORED, TokenRow

#: A bucket may grow while at most this share of its padded tokens is padding. Measured on two cores with
#: Alpaca rows: 0 (a call per length) and 1 (one call for all) are both slower.
MAX_PADDING_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Consecutive rows that attend in one call."""

    lengths: tuple[int, ...]
    padded_BL: Tensor | None
    """Index into the bucket's own tokens for each padded place; None where all rows are equally long."""
    kept: Tensor | None
    """Index into the padded places for each token of the bucket; None likewise."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the bucket, padding not counted."""
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows laid end to end, on the device."""

    input_ids_N: Tensor
    position_ids_N: Tensor
    label_index_M: Tensor
    """Places whose *next* token is trained: the hidden state there predicts `targets_M`."""
    targets_M: Tensor
    label_row_M: Tensor
    """Which of the rows, as numbered by the caller, each label belongs to."""
    buckets: tuple[Bucket, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding to count."""
        return self.input_ids_N.numel()

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that carry a loss."""
        return self.targets_M.numel()


def assemble(rows: Sequence[TokenRow], *, device: torch.device) -> Batch:
    """Lay the rows end to end, shortest first. `label_row_M` numbers them as given."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    ids: list[int] = []
    positions: list[int] = []
    label_index: list[int] = []
    targets: list[int] = []
    label_row: list[int] = []
    for row_number in order:
        row = rows[row_number]
        start = len(ids)
        ids.extend(row.input_ids)
        positions.extend(range(len(row.input_ids)))
        for place, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                label_index.append(start + place)
                targets.append(label)
                label_row.append(row_number)
    return Batch(
        input_ids_N=torch.tensor(ids, device=device),
        position_ids_N=torch.tensor(positions, device=device),
        label_index_M=torch.tensor(label_index, device=device),
        targets_M=torch.tensor(targets, device=device),
        label_row_M=torch.tensor(label_row, device=device),
        buckets=tuple(
            _bucket(lengths, device=device) for lengths in _by_length([len(rows[i].input_ids) for i in order])
        ),
    )


def _by_length(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Split ascending lengths into runs whose padding stays below `MAX_PADDING_SHARE`."""
    runs: list[list[int]] = []
    for length in lengths:
        if runs and 1 - (sum(runs[-1]) + length) / (length * (len(runs[-1]) + 1)) <= MAX_PADDING_SHARE:
            runs[-1].append(length)
        else:
            runs.append([length])
    return [tuple(run) for run in runs]


def _bucket(lengths: tuple[int, ...], *, device: torch.device) -> Bucket:
    longest = lengths[-1]
    if lengths[0] == longest:
        return Bucket(lengths=lengths, padded_BL=None, kept=None)
    padded: list[int] = []
    kept: list[int] = []
    start = 0
    for number, length in enumerate(lengths):
        # Padding repeats the row's last token: any token will do, its output is dropped.
        padded.extend(range(start, start + length))
        padded.extend([start + length - 1] * (longest - length))
        kept.extend(range(number * longest, number * longest + length))
        start += length
    return Bucket(
        lengths=lengths,
        padded_BL=torch.tensor(padded, device=device),
        kept=torch.tensor(kept, device=device),
    )
