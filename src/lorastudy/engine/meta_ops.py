"""Operations on tensors of the meta device, each kind of call worked out once.

The result of an operation on tensors without content has a shape, strides and a type, which follow from the shapes,
strides and types of its arguments. torch works them out in Python, which takes up to two milliseconds. A training step
repeats the same calls in every layer and for every arm, so from the second call on the result is an empty tensor with
the layout of the first result.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

_META = torch.device("meta")

_Kind = Literal["makes", "fills", "other"]
"""`makes`: returns new tensors. `fills`: writes into its first tensor and returns it. `other`: a view, or any other."""

_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a result."""


class MetaOps:
    """Runs operations, and remembers the layouts of their results by the layouts of their arguments."""

    def __init__(self) -> None:
        self._kinds: dict[Any, _Kind] = {}
        self._results: dict[tuple[Any, ...], tuple[_Layout, ...] | None] = {}

    @property
    def num_known(self) -> int:
        """The number of different calls whose results are remembered."""
        return sum(layouts is not None for layouts in self._results.values())

    def run(self, func: Any, args: Sequence[Any], *, options: Mapping[str, Any]) -> Any:
        """The result of the operation: torch's own, or a tensor with the layout of an earlier equal call's result."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        key = None if kind == "other" else _key(func, args, options=options)
        if key is None:
            return func(*args, **options)
        layouts = self._results.get(key)
        if layouts is not None:
            return args[0] if kind == "fills" else _made(layouts)
        out = func(*args, **options)
        if key not in self._results:
            self._results[key] = () if kind == "fills" else _layouts(out, args)
        return out


def _kind(func: Any) -> _Kind:
    arguments, returns = func._schema.arguments, func._schema.returns
    aliased = [argument for argument in arguments if argument.alias_info is not None]
    num_aliased_returns = sum(value.alias_info is not None for value in returns)
    if not aliased and not num_aliased_returns:
        return "makes"
    writes_first = (
        aliased == arguments[:1] and aliased[0].alias_info.is_write and str(aliased[0].type) == "Tensor"
    )
    if writes_first and num_aliased_returns == len(returns) == 1 and torch.Tag.inplace_view not in func.tags:
        return "fills"
    return "other"


def _key(func: Any, args: Sequence[Any], *, options: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Equal for calls with results of equal layouts; None if an argument has content, so that the layout may too."""
    try:
        key = (func, *map(_described, args), *((name, _described(value)) for name, value in options.items()))
        hash(key)
    except (_ContentError, TypeError):
        return None
    return key


class _ContentError(Exception):
    """An argument is not on the meta device, or it is complex, whose conjugation torch may put off."""


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device != _META or value.dtype.is_complex:
            raise _ContentError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value  # 1, 1.0 and True are equal


def _layouts(out: Any, args: Sequence[Any]) -> tuple[_Layout, ...] | None:
    """The layouts of the results; None if one of them is not a whole new tensor of the meta device."""
    results = (out,) if isinstance(out, Tensor) else out
    if not isinstance(results, tuple) or not all(isinstance(each, Tensor) for each in results):
        return None
    layouts = tuple((tuple(each.shape), each.stride(), each.dtype) for each in results)
    storages = {each.untyped_storage()._cdata for each in results}
    known = {each.untyped_storage()._cdata for each in _tensors(args)}
    made = _made(layouts)
    is_new = all(
        each.device == _META and each.untyped_storage().nbytes() == like.untyped_storage().nbytes()
        for each, like in zip(results, (made,) if isinstance(made, Tensor) else made, strict=True)
    )
    return layouts if is_new and len(storages) == len(results) and storages.isdisjoint(known) else None


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _made(layouts: tuple[_Layout, ...]) -> Any:
    made = tuple(
        torch.empty_strided(shape, strides, dtype=dtype, device=_META) for shape, strides, dtype in layouts
    )
    return made[0] if len(made) == 1 else made
