"""The rows of a run: their counts for a plan, and their text for a preview. Returns plain JSON values.

Both use the same token sets as a run with these settings, so they describe exactly the rows that it trains on.
"""

import heapq
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lorastudy.data.answers import trivial_scores
from lorastudy.data.batches import steps_of
from lorastudy.data.load import DataRows, all_rows, train_and_eval
from lorastudy.data.prompts import Example
from lorastudy.data.token_sets import MIN_ROWS, Reach, longest_row, split_tokens, token_sets
from lorastudy.data.tokenise import IGNORED, TokenRow, TokenSet, whole_row
from lorastudy.engine.batch import BatchPlan, plan_batches
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.fake_model import read_config
from lorastudy.engine.loading import check_rows, load_tokenizer, local_folder, num_embeddings, num_positions
from lorastudy.errors import DataError
from lorastudy.protocol.jobs import PreviewQuestion, RowsQuestion
from lorastudy.protocol.records import RowsRead, TrivialScore
from lorastudy.suite.settings import Settings

#: The plan reports a length that keeps this share of the rows whole, since the longest row may be an outlier.
MOST_ROWS = 0.95

_Lengths = Sequence[tuple[int | None, float | None]]
"""(max_steps, num_train_epochs) of experiments that share the rest of their settings."""


#: The most rounds of micro-batches in an answer, of each kind, and the most row lengths in all of them. More would make
#: the answer large and the prediction hardly better.
NUM_ROUNDS, NUM_ROUND_LENGTHS = 32, 1 << 16


@dataclass(frozen=True, kw_only=True)
class _RunRows:
    """All rows of a run by split, both as in their files and as tokens."""

    rows: Mapping[str, DataRows]
    sets: Mapping[str, TokenSet]
    tokenizer: PreTrainedTokenizerBase
    config: Any
    """The base model's configuration."""


def rows_read(question: RowsQuestion) -> dict[str, Any]:
    """The largest micro-batch and the mean tokens of a step for each order of the rows; and a summary of each split.

    Also the largest micro-batches of all orders side by side (`_rounds`).
    """
    settings = _settings(question.settings)
    of_run = _run_rows(settings, lengths=question.lengths, data_seeds=question.data_seeds)
    sets = of_run.sets
    trivial = list(
        trivial_scores(
            sets,
            settings,
            vocab_size=num_embeddings(of_run.config),
            num_positions=num_positions(of_run.config),
        )
    )
    num_steps = _num_steps(settings, question.lengths, num_rows=len(sets["train"].rows))
    plans = [
        _batch_plan(sets["train"], settings, data_seed=seed, num_steps=num_steps)
        for seed in question.data_seeds
    ]
    return {
        "orders": [_order(sets["train"], plan) for plan in plans],
        "rounds": _rounds(sets["train"], plans),
        "num_steps": num_steps,
        "num_rows": len(sets["train"].rows),
        "longest_row": longest_row(sets),
        "splits": [asdict(_read(tokens, trivial=trivial)) for tokens in sets.values()],
    }


def rows_previewed(question: PreviewQuestion) -> dict[str, Any]:
    """The first rows of a split that are used, then one row that is cut and one that is refused.

    Raises:
        DataError: the run has no such split, or cannot use its rows.
    """
    settings = _settings(question.settings)
    if question.split is None:
        of_run, split = _file_rows(settings), "train"
    else:
        of_run, split = (
            _run_rows(settings, lengths=question.lengths, data_seeds=[question.data_seed]),
            question.split,
        )
    if split not in of_run.sets:
        raise DataError(f"these settings name no {split} rows; there are {', '.join(of_run.sets)}")
    tokens = of_run.sets[split]
    order: Sequence[int] = range(len(tokens.rows))
    if question.split == "train":
        num_steps = _num_steps(settings, question.lengths, num_rows=len(tokens.rows))
        plan = _batch_plan(tokens, settings, data_seed=question.data_seed, num_steps=num_steps)
        order = list(dict.fromkeys(row for step in plan.row_numbers for batch in step for row in batch))
    shown = _shown(tokens, order, num_rows=question.num_rows)
    places = sorted({place for place, _ in shown})
    examples = dict(zip(places, of_run.rows[split].read(places), strict=True))
    return {
        "summary": asdict(replace(tokens.summary, groups=None)),
        "max_seq_length": settings.max_seq_length,
        "notes": list(of_run.rows[split].dataset.format.notes),
        "rows": [
            _previewed(
                examples[place],
                None if number is None else tokens.rows[number],
                part="" if number is None else _part(tokens, number),
                settings=settings,
                tokenizer=of_run.tokenizer,
            )
            for place, number in shown
        ],
    }


def _settings(values: Mapping[str, Any]) -> Settings:
    return Settings.model_validate_json(json.dumps(values))


def _tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    return load_tokenizer(settings.base_model, trust_remote_code=settings.trust_remote_code)


def _run_rows(settings: Settings, *, lengths: _Lengths, data_seeds: Sequence[int]) -> _RunRows:
    """All splits that a run reads. Raises the error of any split, even of a split that is not previewed."""
    tokenizer = _tokenizer(settings)
    study = train_and_eval(settings, style=prompt_style(tokenizer, settings.prompt_format))
    reach = Reach.of(settings, max_steps=[steps for steps, _ in lengths], data_seeds=data_seeds)
    sets = token_sets(study, settings, tokenizer=tokenizer, reach=reach)
    config = _checked_config(sets, settings, tokenizer=tokenizer)
    parts = {
        "train": study.train,
        "eval": study.held_out,
        "test": study.test,
        "forgetting": study.forgetting,
    }
    return _RunRows(
        rows={split: rows for split, rows in parts.items() if rows is not None},
        sets=sets,
        tokenizer=tokenizer,
        config=config,
    )


def _file_rows(settings: Settings) -> _RunRows:
    """Only the first rows of the training file."""
    tokenizer = _tokenizer(settings)
    style = prompt_style(tokenizer, settings.prompt_format)
    rows = all_rows(settings.dataset_path, max_samples=MIN_ROWS, style=style)
    sets = {"train": split_tokens(rows.read(), settings=settings, tokenizer=tokenizer, split="train")}
    config = _checked_config(sets, settings, tokenizer=tokenizer)
    return _RunRows(rows={"train": rows}, sets=sets, tokenizer=tokenizer, config=config)


def _checked_config(
    sets: Mapping[str, TokenSet], settings: Settings, *, tokenizer: PreTrainedTokenizerBase
) -> Any:
    """The base model's configuration, after checking that it supports every token of the rows."""
    config = read_config(
        local_folder(settings.base_model, with_code=settings.trust_remote_code),
        trust_remote_code=settings.trust_remote_code,
    )
    for tokens in sets.values():
        check_rows(tokens.rows, config=config, base_model=settings.base_model, tokenizer=tokenizer)
    return config


def _num_steps(settings: Settings, lengths: _Lengths, *, num_rows: int) -> int:
    """Optimizer steps of the longest of these trainings."""
    return max(
        steps_of(
            settings.model_copy(update={"max_steps": steps, "num_train_epochs": epochs}), num_rows=num_rows
        )
        for steps, epochs in lengths
    )


def _batch_plan(train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int) -> BatchPlan:
    return plan_batches(train, settings, data_seed=data_seed, num_steps=num_steps, device=torch.device("cpu"))


def _order(train: TokenSet, plan: BatchPlan) -> dict[str, Any]:
    """The micro-batch with the most tokens in one order of the rows, and the mean tokens of a step."""
    lengths = tuple(train.rows.lengths())
    largest = max(
        (batch for step in plan.row_numbers for batch in step),
        key=lambda rows: sum(lengths[row] for row in rows),
    )
    num_tokens = sum(lengths[row] for step in plan.row_numbers for batch in step for row in batch)
    return {**_micro_batch(train, largest), "mean_tokens_per_step": num_tokens / plan.num_steps}


def _micro_batch(train: TokenSet, rows: Sequence[int]) -> dict[str, Any]:
    return {
        "row_lengths": sorted(map(train.rows.num_tokens, rows)),
        "num_labels": sum(map(train.rows.num_trained_tokens, rows)),
    }


def _rounds(train: TokenSet, plans: Sequence[BatchPlan]) -> list[list[dict[str, Any]]]:
    """Micro-batches that several orders train side by side: for each of some rounds, that of each order.

    The rounds are those with the most tokens over all orders, and those with the most in each order. A pack may hold
    any of the orders, so its largest round is looked for among them.
    """
    if len(plans) == 1:
        return []
    num_lengths = len(plans) * (len(plans) + 1) * len(plans[0].row_numbers[0][0])  # of one round of each kind
    num_rounds = min(NUM_ROUNDS, max(1, NUM_ROUND_LENGTHS // num_lengths))
    lengths = tuple(train.rows.lengths())
    batches_by_order = [[batch for step in plan.row_numbers for batch in step] for plan in plans]
    tokens_by_order = [
        [sum(lengths[row] for row in batch) for batch in batches] for batches in batches_by_order
    ]
    of_all = [sum(tokens) for tokens in zip(*tokens_by_order, strict=True)]
    chosen = {
        number
        for tokens in (of_all, *tokens_by_order)
        for number in heapq.nlargest(num_rounds, range(len(tokens)), key=tokens.__getitem__)
    }
    return [
        [_micro_batch(train, batches[number]) for batches in batches_by_order] for number in sorted(chosen)
    ]


def _read(tokens: TokenSet, *, trivial: Sequence[TrivialScore]) -> RowsRead:
    lengths = sorted(tokens.counted.whole_lengths)
    most = lengths[math.ceil(MOST_ROWS * len(lengths)) - 1]
    return RowsRead(
        summary=tokens.summary,
        trivial=tuple(
            replace(score, items=(), weights=None) for score in trivial if score.split == tokens.summary.split
        ),
        length_of_all=lengths[-1],
        length_of_most=most,
    )


def _shown(tokens: TokenSet, order: Sequence[int], *, num_rows: int) -> list[tuple[int, int | None]]:
    """Position and number of the rows to show: the first rows, a cut row if none of these is cut, and a refused row.

    A refused row has no number.
    """
    cut = _cut_rows(tokens)
    shown = list(order[:num_rows])
    if cut.isdisjoint(shown):
        shown += [row for row in order if row in cut][:1]
    refused: list[tuple[int, int | None]] = [(place, None) for place in sorted(tokens.refused)[:1]]
    return [(tokens.places[row], row) for row in shown] + refused


def _cut_rows(tokens: TokenSet) -> set[int]:
    """The numbers of the rows that are cut at their end."""
    places = sorted([*tokens.places, *tokens.refused])
    whole = [
        length
        for place, length in zip(places, tokens.whole_lengths, strict=True)
        if place not in tokens.refused
    ]
    lengths = zip(whole, tokens.rows.lengths(), strict=True)
    return {row for row, (all_tokens, used) in enumerate(lengths) if all_tokens > used}


def _part(tokens: TokenSet, row: int) -> str:
    """` (row 2 of 5)` if one text became several rows, else an empty string."""
    place = tokens.places[row]
    first, stop = bisect_left(tokens.places, place), bisect_right(tokens.places, place)
    return "" if stop - first == 1 else f" (row {row - first + 1} of {stop - first})"


def _previewed(
    example: Example,
    used: TokenRow | None,
    *,
    part: str,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """One row: its ids and labels as in training, and its text in pieces. A refused row has no ids and no labels."""
    if part and used is not None:
        ids, labels = list(used.input_ids), list(used.labels)
    else:
        ids, labels = whole_row(example, tokenizer=tokenizer)
    if used is not None:
        num_used = len(used.input_ids)
        assert (list(used.input_ids), list(used.labels)) == (ids[:num_used], labels[:num_used])
    rendering = example.rendering
    return {
        "where": f"{example.row.where}{part}",
        "is_refused": used is None,
        "input_ids": [] if used is None else used.input_ids,
        "labels": [] if used is None else used.labels,
        "num_trained_tokens": 0 if used is None else used.num_completion_tokens,
        "num_whole_tokens": len(ids),
        "num_whole_trained_tokens": len(labels) - labels.count(IGNORED),
        "layout": rendering.layout,
        "fell_back": rendering.fell_back,
        "unseen": rendering.unseen,
        "pieces": _pieces(ids, labels, max_seq_length=settings.max_seq_length, tokenizer=tokenizer),
    }


def _pieces(
    ids: Sequence[int], labels: Sequence[int], *, max_seq_length: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The text of the tokens in pieces. Tokens of a piece agree in being cut off, trained and special."""
    marks = tokenizer.added_tokens_decoder  # a new table each time

    def kind(number: int) -> tuple[bool, bool, bool]:
        return number >= max_seq_length, labels[number] != IGNORED, ids[number] in marks

    pieces = []
    start, before = 0, ""
    for (is_cut_off, is_trained, is_special), numbers in groupby(range(len(ids)), key=kind):
        stop = start + len(list(numbers))
        text = _text(ids[:stop], tokenizer)
        # The text of tokens may depend on earlier tokens: a word mark at the very beginning gives no space.
        own = text[len(before) :] if text.startswith(before) else _text(ids[start:stop], tokenizer)
        pieces.append(
            {"text": own, "is_cut_off": is_cut_off, "is_trained": is_trained, "is_special": is_special}
        )
        start, before = stop, text
    return pieces


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
