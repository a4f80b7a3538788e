"""Checks, before training, that the packed forward computes what the model's own forward computes.

Some models do more between embedding and logits than the packed engine: logit soft caps or scales, attention biases,
sliding windows. Instead of a list of supported architectures, this module runs a few tokens both ways and compares the
results. It does the same with one row as long as the longest training row. In an untrained or half-precision model the
numbers may hide two faults, so these are checked in the structure: every layer must use the packed engine's attention,
and every token must see its whole row.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine import attention
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.numerics import is_nondeterministic
from lorastudy.engine.quantised import feels_other_rows
from lorastudy.errors import FOREIGN_ERRORS, first_line

_Result = TypeVar("_Result")

#: Largest relative difference of results due to rounding, by bytes of the model's precision.
TOLERANCE = {4: 1e-4, 2: 5e-2}

#: Largest relative difference between the model's logits and its head applied to its last hidden states, in any
#: precision. Both are the same operations on the same numbers. A soft cap of 30 on logits of 3 makes 3e-3.
HEAD_TOLERANCE = 1e-3

#: Largest relative difference in the other rows when the tokens of one row change, by bytes of the model's precision.
#: The other rows are the same products of the same numbers, but with experts a product may have more or fewer rows.
ROWS_TOLERANCE = {4: 1e-6, 2: 5e-3}

#: Shortest first, as a batch lays its rows.
ROW_LENGTHS = (3, 5, 7)

#: Kinds of layers that see only some earlier tokens, in transformers' `layer_types` and GPT-Neo's `attention_layers`.
_SHORT_SIGHTED = ("sliding", "chunked", "local")

#: The names under which configurations give the span of such layers. The first one is a plain sliding window.
_SPANS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """The ways to run a model that the checks compare."""

    model: PreTrainedModel
    body_forward: Callable[[Batch], Tensor]
    """The packed forward up to the last hidden states, (1, N, D)."""
    running: Callable[[Batch], AbstractContextManager[None]]
    """Gives the context in which the patched model runs on that batch."""
    own_attention: str
    """The name of the model's own attention in transformers."""

    @property
    def kind(self) -> str:
        """The model's name in messages."""
        return type(self.model).__name__

    @property
    def tolerance(self) -> float:
        """The largest relative difference due to rounding."""
        return TOLERANCE.get(self.model.dtype.itemsize, TOLERANCE[2])


def probe_batch(model: PreTrainedModel, *, device: torch.device) -> Batch:
    """Three short rows in which every token but the first has a label."""
    return _batch(model, ROW_LENGTHS, device=device)


@torch.no_grad()
def check_supported(forwards: Forwards, *, head: Callable[..., Any] | None, batch: Batch) -> None:
    """Check that rows end to end give the logits of single rows, and that logits are the head applied to the states.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or the packed forward fails.
    """
    model, kind = forwards.model, forwards.kind
    if head is None:
        raise UnsupportedModelError(f"{kind} has no output head that the packed engine can use")

    def packed_and_whole() -> tuple[Tensor, Tensor]:
        packed = head(forwards.body_forward(batch)[0]).float()
        with forwards.running(batch):
            whole = model(
                input_ids=batch.input_ids_N[None], position_ids=batch.position_ids_N[None], use_cache=False
            )
        return packed, whole.logits[0].float()

    packed, whole = _tried(kind, packed_and_whole)
    difference = _relative(packed, whole)
    if not difference <= HEAD_TOLERANCE:
        raise UnsupportedModelError(
            f"{kind}: its logits are not its output head's: they differ by {difference:.1e} (relative)"
        )
    with _own_attention(forwards):
        alone = torch.cat(
            [
                model(input_ids=ids_S[None], use_cache=False).logits[0]
                for ids_S in torch.split(batch.input_ids_N, list(ROW_LENGTHS))
            ]
        ).float()
    _agree(forwards, packed=packed, alone=alone)


@torch.no_grad()
def check_rows_are_apart(forwards: Forwards, *, batch: Batch) -> None:
    """Check that every layer uses the packed engine's attention, and that no row affects another.

    Raises:
        UnsupportedModelError: the model mixes tokens elsewhere too (state spaces, convolutions, attention of its own).
    """
    kind = forwards.kind
    config: Any = forwards.model.config.get_text_config()
    num_layers = getattr(config, "num_hidden_layers", None) or 1
    with attention.counted() as calls:
        before = _tried(kind, partial(_states, forwards, batch))
    if calls.number < num_layers:
        raise UnsupportedModelError(
            f"{kind}: {calls.number} of its {num_layers} layers use the attention that keeps packed rows apart"
        )
    if any(feels_other_rows(module) for module in forwards.model.modules()):
        return  # LLM.int8() picks outlier columns over all rows of an arm, so rows may differ by more than rounding
    first = ROW_LENGTHS[0]
    other = torch.cat([batch.input_ids_N[:first].flip(0) + 1, batch.input_ids_N[first:]])
    changed = replace(batch, input_ids_N=other % _num_ids(forwards.model))
    after = _tried(kind, partial(_states, forwards, changed))
    difference = _relative(after[first:], before[first:])
    if not difference <= ROWS_TOLERANCE.get(forwards.model.dtype.itemsize, ROWS_TOLERANCE[2]):
        raise UnsupportedModelError(
            f"{kind}: rows laid end to end feel each other ({difference:.1e}, relative)"
        )


@torch.no_grad()
def check_longest_row(forwards: Forwards, *, num_tokens: int, device: torch.device) -> None:
    """Check that a row of this length gives the same last hidden states both ways.

    Compares hidden states, since logits of all tokens may not fit in memory even if training does.

    Raises:
        UnsupportedModelError: they differ, the packed forward fails, or some layer sees only a part of the row.
    """
    kind, config = forwards.kind, forwards.model.config
    if not (has_sliding_windows(config) and attention.has_windows(device, forwards.model.dtype)):
        check_span(config, num_tokens=num_tokens, kind=kind)
    batch = _batch(forwards.model, (num_tokens,), device=device)
    packed = _tried(kind, partial(_states, forwards, batch))
    body: Any = forwards.model.base_model
    with _own_attention(forwards):
        alone = body(input_ids=batch.input_ids_N[None], use_cache=False)[0][0].float()
    _agree(forwards, packed=packed, alone=alone)


def check_step(forwards: Forwards, *, losses_of: Callable[[Batch], Tensor], batch: Batch) -> None:
    """Check that a step's gradients can be computed, and that fresh arms side by side have one loss.

    `losses_of` runs the forward and the backward pass of all arms, and gives each arm's loss, (K,).

    Raises:
        UnsupportedModelError: the step fails, or the losses differ by more than rounding.
    """
    losses_K = _tried(forwards.kind, partial(losses_of, batch))
    lowest, highest = torch.stack([losses_K.min(), losses_K.max()]).tolist()
    # Losses that are not finite pass: no engine can train them, and the scores of the base say so.
    if highest - lowest > forwards.tolerance * abs(highest):
        raise UnsupportedModelError(
            f"{forwards.kind}: fresh arms side by side have different losses, {lowest:.6g} and {highest:.6g}"
        )


def check_span(config: Any, *, num_tokens: int, kind: str) -> None:
    """Refuse rows that are longer than the attention span of some layer.

    Raises:
        UnsupportedModelError: the longest row is longer than the model's sliding window or chunk.
    """
    span = attention_span(config)
    if span is not None and num_tokens > span:
        raise UnsupportedModelError(
            f"{kind}: some of its layers see {span} tokens at once (a sliding window), which the packed engine does not do here, "
            f"and the longest row has {num_tokens}"
        )


def attention_span(config: Any) -> int | None:
    """The shortest attention span of any layer, in tokens; None if every layer sees all earlier tokens."""
    text = config.get_text_config()
    if getattr(text, "use_sliding_window", True) is False:
        return None
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if kinds is not None and not any(word in str(kind) for kind in kinds for word in _SHORT_SIGHTED):
        return None
    spans = [span for name in _SPANS if isinstance(span := getattr(text, name, None), int)]
    return min(spans, default=None)


def has_sliding_windows(config: Any) -> bool:
    """Whether the layers that do not see all earlier tokens have a sliding window, and not chunks or another pattern."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    window, *other_spans = _SPANS
    _, *other_kinds = _SHORT_SIGHTED
    return (
        isinstance(getattr(text, window, None), int)
        and not any(word in str(kind) for kind in kinds for word in other_kinds)
        and all(getattr(text, name, None) is None for name in (*other_spans, "attention_layers"))
    )


@contextmanager
def _own_attention(forwards: Forwards) -> Iterator[None]:
    forwards.model.set_attn_implementation(forwards.own_attention)
    try:
        yield
    finally:
        forwards.model.set_attn_implementation(attention.NAME)


def _agree(forwards: Forwards, *, packed: Tensor, alone: Tensor) -> None:
    difference = _relative(packed, alone)
    if not difference <= forwards.tolerance:
        raise UnsupportedModelError(
            f"{forwards.kind}: the packed forward differs from the model's own by {difference:.1e} (relative)"
        )


def _tried(kind: str, run: Callable[[], _Result]) -> _Result:
    """The result of the packed forward. An error means an unsupported model.

    Neither out of memory nor an operation that is not deterministic is one: the reference engine would meet them too.
    """
    try:
        return run()
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{kind}: {error}") from error
    except FOREIGN_ERRORS as error:
        if is_out_of_memory(error) or is_nondeterministic(error):
            raise
        raise UnsupportedModelError(
            f"{kind}: its forward does not run on rows laid end to end: {first_line(error)}"
        ) from error


def _states(forwards: Forwards, batch: Batch) -> Tensor:
    """The last hidden states of the packed forward in fp32, (N, D)."""
    return forwards.body_forward(batch)[0].float()


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _num_ids(model: PreTrainedModel) -> int:
    config: Any = model.config
    return int(config.get_text_config().vocab_size)


def _batch(model: PreTrainedModel, lengths: tuple[int, ...], *, device: torch.device) -> Batch:
    num_ids = _num_ids(model)
    rows = [
        _row(tuple((7 * number + 3 * place + 1) % num_ids for place in range(length)))
        for number, length in enumerate(lengths)
    ]
    return assemble(rows, device=device)


def _row(ids: tuple[int, ...]) -> TokenRow:
    return TokenRow(input_ids=ids, labels=ids, prompt_ids=(), prompt_text="", reference="")
