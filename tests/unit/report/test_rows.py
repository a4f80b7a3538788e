"""A measured peak is about the data's rows: the report says so, and how to have it for rows of the full length."""

import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lorastudy.cli.main import app
from lorastudy.protocol.records import MemoryPrediction
from lorastudy.report.document import Code, plain
from lorastudy.report.rows import about_full_length, estimate_command, on_which_rows
from lorastudy.stats.study import split_studies
from lorastudy.suite.settings import Settings

SETTINGS = {"max_seq_length": 16, "per_device_train_batch_size": 32}


@pytest.fixture
def arm_of(make_result):
    def arm_of(num_tokens=None, **settings):
        result = make_result("r16", 0, settings=SETTINGS | settings)
        if num_tokens is not None:
            terms = (
                "quantisation_constants",
                "adapters",
                "gradients",
                "optimizer",
                "activations",
                "loss",
                "workspace",
            )
            predicted = MemoryPrediction(
                experiment_id=result.experiment_id, memory_kind="cpu_tensors", num_tokens=num_tokens, num_labels=1,
                alone_bytes=9, pack_bytes=9, step_seconds=None, base_weights=9, allocator_slack=0, **dict.fromkeys(terms, 0),
            )  # fmt: skip
            result = replace(result, prediction=predicted)
        (study,) = split_studies([result])
        return study.arms[0]

    return arm_of


def test_rows_that_are_shorter_than_allowed_are_told_with_both_lengths(arm_of):
    arm = arm_of(290)
    # 32 rows of 16 tokens
    assert on_which_rows(arm) == (
        "on the rows of this data (at most 290 tokens in a micro-batch; rows of the full length have 512)"
    )
    told = about_full_length(arm)
    assert (
        "at most 290 tokens in a micro-batch of r16. Rows of the full length (max_seq_length 16, 32 in a"
        in plain(told)
    )
    assert Code(estimate_command(arm.typed_settings)) in told


def test_rows_of_the_full_length_need_no_other_number(arm_of):
    assert on_which_rows(arm_of(512)) == "on the rows of this data"
    assert plain(about_full_length(arm_of(512))).startswith(" Its rows are of the full length: 512 tokens")


def test_without_a_prediction_nobody_knows_how_long_the_rows_were(arm_of):
    assert on_which_rows(arm_of()) == "on the rows of this data"
    assert "need more, unless all rows are as long" in plain(about_full_length(arm_of()))


def test_what_the_command_has_no_word_for_is_left_without_one(arm_of):
    told = about_full_length(arm_of(290, layers_to_transform=[0]))
    assert not any(isinstance(span, Code) for span in told)


def test_the_command_is_one_that_lorastudy_takes(monkeypatch):
    seen = {}
    monkeypatch.setattr("lorastudy.planning.predictions.JobWorker", lambda: seen["stop"])
    settings = Settings(
        base_model="a model", lora_rank=8, target_modules=["q_proj", "v_proj"], quantization="4bit", lora_dropout=0.05,
        gradient_checkpointing=True, trust_remote_code=True, **SETTINGS,
    )  # fmt: skip
    command = estimate_command(settings)
    assert command.startswith(
        "lorastudy estimate --base-model 'a model' --rank 8 --target-modules q_proj,v_proj "
    )
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    # every option was understood: what stops it is that no worker is to be had here
    assert isinstance(done.exception, KeyError)
