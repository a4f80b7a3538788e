"""Full fine-tuning: the same numbers as a plain loop of torch, a base that is itself again, a model that transformers loads."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

import tiny
from lorastudy.engine.full_fine_tuning import FullFineTuning, LoadedModel
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.errors import ModelError
from lorastudy.suite.methods import ArmMethod
from lorastudy.suite.settings import Settings
from lorastudy.train.checkpointing import Checkpoint, read_checkpoint, write_checkpoint
from lorastudy.train.selection import Selected

pytestmark = pytest.mark.usefixtures("one_thread")

PRECISIONS = ["fp32", "bf16", "fp16"]


@pytest.fixture(params=PRECISIONS)
def base(request: Any, tmp_path: Path) -> BaseModel:
    return loaded(tmp_path / "base", request.param)


def loaded(folder: Path, quantization: str) -> BaseModel:
    if not folder.exists():
        tiny.save_base(folder)
    return load_base(Settings(base_model=str(folder), quantization=quantization), device=tiny.CPU)


def arm(**values: Any) -> Any:
    settings = {"method": ArmMethod(is_full=True), "num_steps": 6, "learning_rate": 1e-3, **values}
    return tiny.make_arm((), **settings)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def by_hand(base: BaseModel, settings: Any, steps: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The obvious loop: fp32 weights are rounded into the model, and its gradients are added up in fp32."""
    model = copy.deepcopy(base.model).requires_grad_(requires_grad=True)
    own = {name: weight.detach().float().requires_grad_() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for weight in own.values() if weight.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [weight for weight in own.values() if weight.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_epsilon,
    )  # fmt: skip
    schedule = get_scheduler(
        settings.lr_scheduler_type, optimizer, num_warmup_steps=settings.num_warmup_steps,
        num_training_steps=settings.num_steps,
    )  # fmt: skip
    losses = []
    for batches in steps:
        total = sum(batch.num_completion_tokens for batch in batches)
        losses.append(0.0)
        for batch in batches:
            loss = loss_of(model, batch) / total
            model.zero_grad()
            loss.backward()
            losses[-1] += loss.item()
            for name, weight in model.named_parameters():
                gradient = weight.grad.float()
                own[name].grad = gradient if own[name].grad is None else own[name].grad + gradient
        torch.nn.utils.clip_grad_norm_(list(own.values()), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(own[name])
    return losses, weights_of(model)


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    """Nats of all labels of a batch, row by row without padding."""
    start, total = 0, torch.zeros(())
    labels = dict(zip(batch.label_index_M.tolist(), batch.targets_M.tolist(), strict=True))
    for bucket in batch.buckets:
        for _ in range(bucket.num_rows):
            places = range(start, start + bucket.length)
            logits = model(input_ids=batch.input_ids_N[start : start + bucket.length][None]).logits[0].float()
            own = [place for place in places if place in labels]
            targets = torch.tensor([labels[place] for place in own])
            total = total + F.cross_entropy(
                logits[[place - start for place in own]], targets, reduction="sum"
            )
            start += bucket.length
    return total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_as_a_plain_loop_of_torch_does(tmp_path: Path, accumulation: int) -> None:
    base, steps = loaded(tmp_path / "base", "fp32"), tiny.make_steps(6, accumulation=accumulation)
    losses, weights = by_hand(base, arm(), steps)
    log = tiny.Log()
    with tiny.opened(FullFineTuning(base, [arm()])) as engine:
        engine.train(steps, on_step=log)
        trained = weights_of(base.model)
    assert log.losses["a"] == pytest.approx(losses, rel=1e-5)
    for name, weight in weights.items():
        assert torch.allclose(trained[name], weight, atol=2e-5), name


def test_in_bf16_small_steps_are_not_lost(tmp_path: Path) -> None:
    """A step of 1e-6 is below the distance of most bf16 numbers. Without fp32 weights nothing would change."""
    base, steps = loaded(tmp_path / "base", "bf16"), tiny.make_steps(40)
    small = arm(num_steps=40, learning_rate=2e-5, lr_scheduler_type="constant", num_warmup_steps=0)
    _, weights = by_hand(base, small, steps)
    before = weights_of(base.model)
    with tiny.opened(FullFineTuning(base, [small])) as engine:
        engine.train(steps, on_step=tiny.Log())
        trained = weights_of(base.model)
    name = "model.layers.0.mlp.down_proj.weight"
    moved = (trained[name] - before[name]).float().norm()
    assert moved > 0
    apart = (trained[name] - weights[name]).float().norm()
    assert apart < 0.2 * moved


def test_the_base_is_itself_again_and_frozen(base: BaseModel) -> None:
    before, steps = weights_of(base.model), tiny.make_steps(3)
    engine = FullFineTuning(base, [arm()])
    engine.train(steps, on_step=tiny.Log())
    assert any(not torch.equal(before[name], weight) for name, weight in weights_of(base.model).items())
    engine.close()
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(base.model).items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in base.model.parameters())


def test_the_saved_folder_is_a_model_of_transformers_with_its_tokenizer(
    base: BaseModel, tmp_path: Path
) -> None:
    ids = torch.tensor([[5, 9, 30, 7]])
    with tiny.opened(FullFineTuning(base, [arm()])) as engine:
        engine.train(tiny.make_steps(3), on_step=tiny.Log())
        num_bytes = engine.save_adapter(engine.arms[0], tmp_path / "saved")
        with torch.no_grad():
            expected = base.model(input_ids=ids).logits
    assert num_bytes == (tmp_path / "saved" / "model.safetensors").stat().st_size
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert model.dtype is base.dtype
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode("w5 w9") == [5, 9]


def test_a_saved_model_scores_with_the_same_bits(base: BaseModel, tmp_path: Path) -> None:
    (batch,), (start,) = tiny.make_steps(1, seed=3)[0], [arm()]
    with tiny.opened(FullFineTuning(base, [start])) as engine:
        engine.train(tiny.make_steps(3), on_step=tiny.Log())
        expected = engine.score(batch)
        engine.save_adapter(start, tmp_path / "saved")
    with tiny.opened(FullFineTuning(base, [start])) as engine:
        assert not torch.equal(engine.score(batch).nll_KM, expected.nll_KM)
        engine.load_adapter(start, tmp_path / "saved")
        assert torch.equal(engine.score(batch).nll_KM, expected.nll_KM)
    before = weights_of(base.model)
    with tiny.opened(LoadedModel(base, tmp_path / "saved")) as model:
        assert torch.equal(model.score(batch).nll_KM, expected.nll_KM)
        assert model.generate([[5, 9]], max_new_tokens=3)[0]
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(base.model).items())


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = loaded(tmp_path / "base", "fp32")
    tiny.save_base(tmp_path / "other", hidden_size=32)
    with pytest.raises(ModelError, match="made for another base model"):
        LoadedModel(base, tmp_path / "other")
    with pytest.raises(ModelError, match=r"has no config.json and no \*\.safetensors"):
        LoadedModel(base, tmp_path)


def test_it_resumes_from_a_checkpoint_to_the_same_bits(base: BaseModel, tmp_path: Path) -> None:
    steps = tiny.make_steps(6, accumulation=2)
    with tiny.opened(FullFineTuning(base, [arm()])) as engine:
        engine.train(steps, on_step=tiny.Log())
        whole = weights_of(base.model)
    with tiny.opened(FullFineTuning(base, [arm()])) as engine:
        engine.train(steps[:2], on_step=tiny.Log())
        kept = Checkpoint(state=engine.state(), notes={}, selected=Selected(arms={}, adapters={}))
        write_checkpoint(tmp_path / "checkpoint", kept)
    with tiny.opened(FullFineTuning(base, [arm()])) as engine:
        engine.restore(read_checkpoint(tmp_path / "checkpoint").state)
        assert engine.num_steps_done == 2
        engine.train(steps[2:], on_step=tiny.Log())
        assert all(torch.equal(whole[name], weight) for name, weight in weights_of(base.model).items())


@pytest.mark.parametrize("quantization", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "method", [{"optim": "adafactor"}, {"optim": "sgd"}, {"neftune_noise_alpha": 5.0}], ids=str
)
def test_with_another_optimizer_or_noise_it_resumes_too(
    tmp_path: Path, quantization: str, method: dict[str, Any]
) -> None:
    base, steps = loaded(tmp_path / "base", quantization), tiny.make_steps(4)
    settings = arm(num_steps=4, method=ArmMethod(is_full=True, **method))
    with tiny.opened(FullFineTuning(base, [settings])) as engine:
        before = weights_of(base.model)
        engine.train(steps, on_step=tiny.Log())
        whole = weights_of(base.model)
    assert any(not torch.equal(before[name], weight) for name, weight in whole.items())
    with tiny.opened(FullFineTuning(base, [settings])) as engine:
        engine.train(steps[:2], on_step=tiny.Log())
        state = engine.state()
    with tiny.opened(FullFineTuning(base, [settings])) as engine:
        engine.restore(state)
        engine.train(steps[2:], on_step=tiny.Log())
        assert all(torch.equal(whole[name], weight) for name, weight in weights_of(base.model).items())


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    base, losses = loaded(tmp_path / "base", "fp32"), []
    for checkpointing in (False, True):
        log = tiny.Log()
        with tiny.opened(FullFineTuning(base, [arm()], gradient_checkpointing=checkpointing)) as engine:
            engine.train(tiny.make_steps(3), on_step=log)
        losses.append(log.losses["a"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
