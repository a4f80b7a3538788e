"""The packed engine against PEFT alone: a loop written here with nothing of ours in it but the rows."""

import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import get_scheduler

import tiny
from lorastudy.engine.batch import assemble
from lorastudy.engine.packed import PackedEngine

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS, ACCUMULATION, BATCH_SIZE = 20, 2, 3


def padded(rows):
    """Ids, mask and labels as any collator makes them: padding on the right."""
    longest = max(len(row.input_ids) for row in rows)
    short = [longest - len(row.input_ids) for row in rows]
    ids = [[*row.input_ids, *[tiny.PAD] * gap] for row, gap in zip(rows, short, strict=True)]
    mask = [[*[1] * len(row.input_ids), *[0] * gap] for row, gap in zip(rows, short, strict=True)]
    labels = [[*row.labels, *[-100] * gap] for row, gap in zip(rows, short, strict=True)]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)


def summed_loss(model, rows):
    ids, mask, labels = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def train_with_peft(model, arm, steps):
    """Losses by step of one arm on a PEFT model: torch's AdamW and clipping, transformers' schedule."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=arm.learning_rate, betas=(arm.adam_beta1, arm.adam_beta2), eps=arm.adam_epsilon,
        weight_decay=arm.weight_decay,
    )  # fmt: skip
    return losses_of_training(model, arm, steps, optimizer=optimizer)


def losses_of_training(model, arm, steps, *, optimizer):
    """Losses by step: torch's clipping and transformers' schedule, with an optimizer of all that trains."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    schedule = get_scheduler(
        arm.lr_scheduler_type, optimizer, num_warmup_steps=arm.num_warmup_steps, num_training_steps=arm.num_steps
    )  # fmt: skip
    losses = []
    for micro_batches in steps[: arm.num_steps]:
        num_tokens = sum(row.num_completion_tokens for rows in micro_batches for row in rows)
        optimizer.zero_grad()
        total = 0.0
        for rows in micro_batches:
            loss = summed_loss(model, rows) / num_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, arm.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses


def row_steps():
    rows = iter(tiny.make_rows(NUM_STEPS * ACCUMULATION * BATCH_SIZE, seed=5))
    return [[[next(rows) for _ in range(BATCH_SIZE)] for _ in range(ACCUMULATION)] for _ in range(NUM_STEPS)]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_each_arm_of_a_pack_equals_peft_alone(architecture, tmp_path):
    base = tiny.make_base(architecture)
    steps = row_steps()
    log = tiny.Log()
    with tiny.opened(PackedEngine(base, tiny.seven_arms(base))) as engine:
        tiny.adapters_of(engine, tmp_path / "fresh")
        batches = [[assemble(rows, device=tiny.CPU) for rows in micro_batches] for micro_batches in steps]
        engine.train(batches, on_step=log)
        trained = tiny.adapters_of(engine, tmp_path / "trained")
        ids = torch.tensor([tiny.make_rows(1, seed=9)[0].input_ids])
        base.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            logits = base.model(ids.repeat(len(engine.arms), 1)).logits

    for number, arm in enumerate(engine.arms):
        model = PeftModel.from_pretrained(
            tiny.make_model(architecture).eval(), str(tmp_path / f"fresh/{number}"), is_trainable=True
        )
        losses = train_with_peft(model.eval(), arm, steps)
        name = arm.experiment_id
        assert len(losses) == arm.num_steps
        assert tiny.largest_relative(log.losses[name], losses) <= 1e-5, name
        model.save_pretrained(str(tmp_path / f"peft/{number}"), save_embedding_layers=False)
        assert tiny.largest_difference(trained[name], tiny.read_adapter(tmp_path / f"peft/{number}")) <= 1e-5

        loaded = PeftModel.from_pretrained(
            tiny.make_model(architecture).eval(), str(tmp_path / f"trained/{number}")
        )
        with torch.no_grad():
            torch.testing.assert_close(logits[number], loaded(ids).logits[0], rtol=0, atol=1e-5)
            untrained = loaded.unload()(ids).logits[0]
        assert (logits[number] - untrained).abs().max() > 1e-2  # the adapter does something


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("phi", "qwen2"))],
)
def test_an_arm_is_the_same_alone_in_a_pack_of_two_and_in_a_pack_of_seven(architecture, tmp_path):
    base = tiny.make_base(architecture)
    arms = tiny.seven_arms(base)
    steps = tiny.make_steps(NUM_STEPS, accumulation=2)
    seven = tiny.train(PackedEngine, base, arms, steps=steps, folder=tmp_path / "seven")
    for first, second in zip(arms[::3], arms[1::3], strict=False):
        name = first.experiment_id
        alone = tiny.train(PackedEngine, base, [first], steps=steps, folder=tmp_path / name / "alone")
        two = tiny.train(PackedEngine, base, [first, second], steps=steps, folder=tmp_path / name / "two")
        for other in (two, seven):
            assert tiny.largest_relative(other[0].losses[name], alone[0].losses[name]) <= 1e-6
            assert tiny.largest_difference(other[1][name], alone[1][name]) <= 1e-6


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_generated_answers_are_those_of_peft_for_prompts_of_different_lengths(architecture, tmp_path):
    base = tiny.make_base(architecture)
    prompts = [row.prompt_ids for row in tiny.make_rows(5, seed=3)]
    assert len({len(prompt) for prompt in prompts}) > 1
    arms = [replace(arm, learning_rate=2e-2) for arm in tiny.seven_arms(base)]
    with tiny.opened(PackedEngine(base, arms)) as engine:
        engine.train(tiny.make_steps(5), on_step=tiny.Log())
        tiny.adapters_of(engine, tmp_path)
        answers = engine.generate(prompts, max_new_tokens=6)
    for number in range(len(engine.arms)):
        model = PeftModel.from_pretrained(tiny.make_model(architecture).eval(), str(tmp_path / str(number)))
        assert answers[number] == [greedy(model, list(prompt), max_new_tokens=6) for prompt in prompts]
    assert len({str(answer) for answer in answers}) > 1


@torch.no_grad()
def greedy(model, ids, *, max_new_tokens):
    """The likeliest token, one at a time, with no cache and no padding."""
    answer = []
    for _ in range(max_new_tokens):
        token = model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax().item()
        if token == tiny.EOS:
            break
        answer.append(token)
    return answer
