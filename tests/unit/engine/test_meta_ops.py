"""Operations on tensors without content: a remembered call gives what torch gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from lorastudy.engine import memory_trace
from lorastudy.engine.fake_model import FakeModels
from lorastudy.engine.memory_trace import footprint
from lorastudy.engine.meta_ops import MetaOps
from lorastudy.protocol.jobs import CountedArm, FootprintQuestion, Precision

META = torch.device("meta")
aten = torch.ops.aten


class TorchAlone:
    """The obvious twin: torch works out every call."""

    def run(self, func: Any, args: Any, *, options: Any) -> Any:
        return func(*args, **options)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def layout(value: torch.Tensor) -> tuple[object, ...]:
    return value.shape, value.stride(), value.dtype, value.storage_offset(), value.untyped_storage().nbytes()


@pytest.mark.long
@pytest.mark.parametrize("values", [
    {},
    {"engine": "reference", "arms": (CountedArm(r=16, targets=("all", None)),)},
    {"precision": Precision(quantization="4bit"), "gradient_checkpointing": True},
    {"device_kind": "cuda", "arms": (CountedArm(r=8, targets=("qv", None), has_dropout=True),) * 3},
])  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_count_is_the_same_as_with_torch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, values: dict[str, Any]
) -> None:
    tiny.config(family, hidden_size=64).save_pretrained(tmp_path)
    asked = FootprintQuestion(
        engine="packed", device_kind="cpu", folder=str(tmp_path), precision=Precision(quantization="bf16"),
        arms=(CountedArm(r=16, targets=("all", None)), CountedArm(r=4, targets=("all", None))),
        gradient_checkpointing=False, row_lengths=(100, 200), num_labels=150,
    )  # fmt: skip
    asked = replace(asked, **values)
    ops = MetaOps()
    monkeypatch.setattr(memory_trace, "_META_OPS", ops)
    first, second = (footprint(asked, models=FakeModels()) for _ in range(2))
    monkeypatch.setattr(memory_trace, "_META_OPS", TorchAlone())
    assert first == second == footprint(asked, models=FakeModels())
    assert ops.num_known > 0


@pytest.mark.parametrize(("func", "args"), [
    (aten.mm.default, (tensor(3, 4), tensor(4, 5))),
    (aten.mul.Tensor, (tensor(3, 4).t(), 2.0)),
    (aten.mul.Tensor, (tensor(3, 4, dtype=torch.int64), 2)),
    (aten.mul.Tensor, (tensor(3, 4, dtype=torch.int64), 2.0)),
    (aten.cat.default, ([tensor(3, 4), tensor(2, 4)],)),
    (aten.sum.dim_IntList, (tensor(3, 4), [0], True)),
    (aten.empty_like.default, (tensor(3, 4).t(),)),
    (aten.native_layer_norm.default, (tensor(3, 4), [4], None, None, 1e-5)),
])  # fmt: skip
def test_the_second_result_has_the_layout_of_the_first(func: Any, args: Any) -> None:
    ops = MetaOps()
    first, second = (ops.run(func, args, options={}) for _ in range(2))
    for one, other in zip(
        *((out,) if isinstance(out, torch.Tensor) else out for out in (first, second)), strict=True
    ):
        assert layout(one) == layout(other)
        assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
    assert ops.num_known == 1


def test_numbers_that_are_equal_but_of_other_types_are_other_calls() -> None:
    ops, x = MetaOps(), tensor(3, dtype=torch.int64)
    results = [ops.run(aten.mul.Tensor, (x, number), options={}).dtype for number in (2, 2.0, 2, 2.0)]
    assert results == [torch.int64, torch.float32] * 2


def test_what_fills_a_tensor_returns_it() -> None:
    ops, x = MetaOps(), tensor(3, 4)
    for _ in range(2):
        assert ops.run(aten.add_.Tensor, (x, tensor(4)), options={}) is x
    assert ops.num_known == 1


@pytest.mark.parametrize(("func", "args"), [
    (aten.t.default, (tensor(3, 4),)),
    (aten._unsafe_view.default, (tensor(3, 4), [12])),
    (aten.unsqueeze_.default, (tensor(3, 4), 0)),
    (aten.mul.Tensor, (torch.ones(3), 2.0)),
    (aten.mul.Tensor, (tensor(3, dtype=torch.complex64), 2.0)),
])  # fmt: skip
def test_views_and_tensors_with_content_are_torchs_own(func: Any, args: Any) -> None:
    ops = MetaOps()
    is_view = args[0].device == META and not args[0].dtype.is_complex
    for _ in range(2):
        out = ops.run(func, args, options={})
        assert (out.untyped_storage()._cdata == args[0].untyped_storage()._cdata) is is_view
    assert ops.num_known == 0
