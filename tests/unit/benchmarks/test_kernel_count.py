"""Kernels of a step on a GPU: how operations are counted, and how many a step of today may launch."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

import documents
from benchmarks import kernel_families
from benchmarks.gpu import ROWS
from benchmarks.kernel_count import (
    RESULTS,
    KernelLedger,
    Kernels,
    all_questions,
    foreach_launches,
    kernels_of,
    question_of,
)
from lorastudy.engine.fake_model import META, FakeModels
from lorastudy.engine.memory_trace import _Peaks
from lorastudy.report.markdown import render_markdown

STORED = {setting["id"]: setting for setting in json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]}


@pytest.fixture(scope="module")
def models() -> FakeModels:
    return FakeModels()


@pytest.mark.parametrize(
    ("name", "question"), [(request.id, question) for request, question in all_questions().items()]
)
def test_a_step_launches_no_more_than_is_on_record(name, question, models: FakeModels):
    """A budget. After a change that launches less: `python -m benchmarks.kernel_count --write` and `make docs`."""
    counted = kernels_of(question, models=models).as_json()
    stored = STORED[name]
    for kind in ("launches", "to_device", "to_host", "waits"):
        for phase, number in counted[kind].items():
            assert number <= stored[kind][phase], (kind, phase)


#: The most kernels that a step may launch, whatever is on record.
BUDGETS = {
    "gpu-5-arms-batch-1": 3000, "gpu-5-arms-batch-4": 3000, "gpu-5-arms-batch-16": 3000, "gpu-16-arms-batch-1": 3200,
    "gpu-5-arms-batch-4-nf4": 5000, "gpu-5-arms-batch-4-own-rows": 3600,
}  # fmt: skip


def test_what_is_on_record_is_within_the_budgets_and_the_host_waits_once_between_steps():
    assert STORED.keys() == BUDGETS.keys()
    for name, setting in STORED.items():
        assert sum(setting["launches"].values()) <= BUDGETS[name], name
        assert setting["waits"] == {"forward": 0, "loss": 0, "backward": 0, "optimizer": 1}, name
        assert (setting["to_device"]["forward"], setting["to_host"]["optimizer"]) == (1, 1), name


def test_each_further_layer_launches_the_same_kernels(models: FakeModels):
    """But for foreach operations, whose tensors are cut into launches all together."""
    one, two, three = (
        kernels_of(question_of(ROWS[0]), models=models, num_layers=number) for number in (4, 5, 6)
    )
    assert one.launches.keys() == two.launches.keys() == three.launches.keys()
    for key in one.launches:
        if "foreach" not in key[1]:
            assert two.launches[key] - one.launches[key] == three.launches[key] - two.launches[key], key


def counted(operation) -> Kernels:
    kernels = Kernels()
    with KernelLedger(into=kernels) as ledger:
        ledger.peaks = _Peaks()
        operation(torch.empty(4, 6, device=META))
    return kernels


@pytest.mark.parametrize(
    ("operation", "launches"),
    [
        (lambda x: x.t().view(6, 4)[1:].detach(), {}),  # views
        (torch.empty_like, {}),  # an allocation
        (torch.zeros_like, {"zeros_like": 1}),
        (lambda x: torch.ones(3) + 1, {}),  # of the CPU
        (lambda x: x.add_(1), {"add_.Tensor": 1}),
        (lambda x: x[:, :0] + 1, {}),  # of no elements
        (lambda x: x.to(torch.bfloat16), {"convert float32 to bfloat16": 1}),
        (lambda x: x.index_copy(0, torch.empty(2, dtype=torch.int64, device=META), x[:2]), {"index_copy": 2}),
        (lambda x: torch._foreach_add_([x] * 70, 1), {"_foreach_add_.Scalar": 1}),
        (lambda x: torch._foreach_add_([x] * 70, [x] * 70), {"_foreach_add_.List": 2}),
        (lambda x: torch._foreach_add([x] * 50, [x] * 50), {"_foreach_add.List": 2}),
        (lambda x: torch._foreach_copy_([x] * 50, [x.new_empty(6, 4).t()] * 50), {"_foreach_copy_": 50}),
        (lambda x: torch._foreach_norm([x] * 5), {"_foreach_norm.Scalar": 3}),
    ],
)
def test_views_and_allocations_launch_nothing(operation, launches: dict[str, int]):
    kernels = counted(operation)
    assert kernels.launches == Counter({("forward", name): number for name, number in launches.items()})
    assert not kernels.waits


def test_the_fused_optimizer_is_cut_as_foreach_operations_are():
    """641 blocks of 65,536 elements, 320 a launch."""

    def update(_):
        weights, step = torch.empty(65536 * 641, device=META), torch.empty((), device=META)
        torch._fused_adamw_(
            [weights], [weights], [weights], [weights], [], [step],
            lr=1.0, beta1=0.9, beta2=0.9, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    assert counted(update).launches == Counter({("forward", "_fused_adamw_"): 3})


@pytest.mark.parametrize("num_arms", [1, 5])
def test_arms_of_one_rank_are_refreshed_in_few_launches(num_arms: int, models: FakeModels):
    """32 layers of 4 modules with two tensors each, 64 a launch; lora_A and lora_B take one block each."""
    question = question_of(ROWS[0])
    same = replace(question, arms=question.arms[:1] * num_arms)
    launches = kernels_of(same, models=models).launches["optimizer", "_foreach_copy_"]
    assert launches == 1 + 4 * num_arms  # and one for s B


def test_copies_and_numbers_that_are_read_make_the_host_wait():
    def to_device(x):
        x.copy_(torch.ones(4, 6))
        x.copy_(torch.ones(4, 6), non_blocking=True)

    kernels = counted(to_device)
    assert (kernels.to_device.total(), kernels.to_host.total(), kernels.waits.total()) == (2, 0, 1)
    kernels = counted(lambda x: (x.sum().item(), x.tolist()))
    assert (kernels.launches.total(), kernels.to_host.total(), kernels.waits.total()) == (1, 1, 2)


def test_a_foreach_operation_is_cut_as_cuda_cuts_it():
    """At most 110 tensors of one list a launch, 64 of two; at most 320 blocks of 65,536 elements."""
    assert [foreach_launches([10] * number, num_lists=1) for number in (1, 110, 111, 220)] == [1, 1, 2, 2]
    assert [foreach_launches([10] * number, num_lists=2) for number in (64, 65)] == [1, 2]
    assert [foreach_launches([65536 * blocks], num_lists=1) for blocks in (320, 321, 641)] == [1, 2, 3]
    assert foreach_launches([], num_lists=1) == 0


@pytest.mark.parametrize("family", ["mistral", "gpt2", "deepseek_v3"])
def test_a_layer_of_a_family_launches_no_more_than_is_on_record(family):
    """With a sliding window, with a look for padding, with values of another size than queries."""
    stored = kernel_families.kernels_by_family()[family]
    counted = kernel_families.count_family(family, preset=stored["preset"])
    assert counted.forward <= stored["forward"]
    assert counted.backward <= stored["backward"]
    assert (counted.attention_calls, counted.is_flash, counted.waits) == (1, True, 0)


def test_every_family_that_the_packed_engine_serves_is_on_record_with_its_attention_in_few_calls():
    stored = kernel_families.kernels_by_family()
    assert stored.keys() == kernel_families.served_presets().keys()
    for family, kernels in stored.items():
        assert kernels["is_flash"], family
        assert kernels["attention_calls"] <= 2, family  # differential attention has two


def test_the_documents_show_what_is_stored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    from kernels import kernel_blocks, kernel_family_blocks

    shown = render_markdown(
        kernel_blocks(documents.ROOT), output=documents.ROOT / "page.md", plots=documents.ROOT
    )
    for setting in STORED.values():
        assert f"| {sum(setting['launches'].values()):,} |" in shown
    families = kernel_families.kernels_by_family()
    shown = render_markdown(
        kernel_family_blocks(documents.ROOT), output=documents.ROOT / "page.md", plots=documents.ROOT
    )
    assert all(
        f"| {family} | {each['preset']} | {each['forward']:,} |" in shown for family, each in families.items()
    )
