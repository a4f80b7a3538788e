"""Label smoothing in both engines against PEFT in a plain loop with transformers' own `LabelSmoother`."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler
from transformers.trainer_pt_utils import LabelSmoother

import tiny
from lorastudy.engine.batch import assemble
from lorastudy.suite.methods import PLAIN
from parity.test_methods import make_arm, peft_alone
from parity.test_peft import padded

pytestmark = pytest.mark.usefixtures("one_thread")


def train_alone(model, arm, steps):
    """Losses by step; transformers' loss is a mean over the labelled tokens, as ours is in a step of one micro-batch."""
    parameters = [parameter for parameter in model.eval().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=arm.learning_rate, betas=(arm.adam_beta1, arm.adam_beta2), eps=arm.adam_epsilon,
        weight_decay=arm.weight_decay,
    )  # fmt: skip
    schedule = get_scheduler(
        arm.lr_scheduler_type, optimizer, num_warmup_steps=arm.num_warmup_steps, num_training_steps=arm.num_steps
    )  # fmt: skip
    smoother, losses = LabelSmoother(epsilon=arm.label_smoothing_factor), []
    for rows in steps:
        ids, mask, labels = padded(rows)
        optimizer.zero_grad()
        loss = smoother(model(input_ids=ids, attention_mask=mask), labels, shift_labels=True)
        loss.backward()
        clip_grad_norm_(parameters, arm.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("engine_of", tiny.ENGINES.values(), ids=list(tiny.ENGINES))
def test_arms_of_a_pack_with_smoothing_of_their_own_equal_peft_alone(engine_of):
    base = tiny.make_base()
    arms = [
        replace(make_arm(base, PLAIN, name=name, r=r), label_smoothing_factor=smoothing)
        for name, r, smoothing in (("sharp", 4, 0.0), ("smooth", 4, 0.1), ("smoother", 8, 0.4))
    ]
    rows = iter(tiny.make_rows(8 * 4, seed=5))
    steps, log = [[next(rows) for _ in range(4)] for _ in range(8)], tiny.Log()
    with tiny.opened(engine_of(base, arms)) as engine:
        engine.train([[assemble(own, device=tiny.CPU)] for own in steps], on_step=log)
    for arm in arms:
        losses = train_alone(peft_alone("llama", base, arm, {}), arm, steps)
        assert tiny.largest_relative(log.losses[arm.experiment_id], losses) <= 1e-5, arm.experiment_id
