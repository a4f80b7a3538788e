"""What every engine promises, asked of the packed one and of the reference alike."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import get_scheduler

import tiny
from lorastudy.engine.adapters import CONFIG_FILE, WEIGHTS_FILE
from lorastudy.engine.batch import assemble
from lorastudy.errors import ModelError
from lorastudy.train.checkpointing import Checkpoint, OtherVersionError, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


#: Precisions, and the steps after which an engine is restored.
RESTORED = ((torch.float32, 1), (torch.float32, 9), (torch.float32, 22), (torch.float16, 5))


@pytest.fixture(params=tiny.ENGINES)
def make_engine(request):
    return tiny.ENGINES[request.param]


@pytest.fixture
def base():
    return tiny.make_base()


def per_row_loss(model, rows):
    """Nats per completion token, one row at a time, no padding."""
    total = sum(
        F.cross_entropy(
            model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1],
            torch.tensor(row.labels[1:]),
            reduction="sum",
        ).item()
        for row in rows
    )
    return total / sum(row.num_completion_tokens for row in rows)


@torch.no_grad()
def test_the_first_loss_is_the_base_models_own(make_engine, base):
    rows = tiny.make_rows(6)
    expected = per_row_loss(base.model, rows)
    log = tiny.Log()
    with tiny.opened(make_engine(base, tiny.seven_arms(base))) as engine, torch.enable_grad():
        engine.train(
            [[assemble(rows[:4], device=tiny.CPU), assemble(rows[4:], device=tiny.CPU)]], on_step=log
        )
    assert len(log.losses) == 7
    for losses in log.losses.values():
        assert losses == [pytest.approx(expected, rel=1e-6)]


def test_every_arm_takes_its_own_number_of_steps_at_its_own_rates(make_engine, base):
    arms = tiny.seven_arms(base)
    results = []
    with tiny.opened(make_engine(base, arms)) as engine:
        engine.train(tiny.make_steps(20, accumulation=2), on_step=results.append)
    for arm in arms:
        own = [
            (result, step)
            for result in results
            for step in result.arms
            if step.experiment_id == arm.experiment_id
        ]
        assert [result.step for result, _ in own] == list(range(1, arm.num_steps + 1))
        assert [step.learning_rate for _, step in own] == pytest.approx(transformers_rates(arm), rel=1e-12)
        assert all(step.loss > 0 and step.grad_norm > 0 for _, step in own)
    first = results[0]
    (batches,) = tiny.make_steps(1, accumulation=2)
    num_arms = len(first.arms)
    assert first.num_tokens == num_arms * sum(batch.num_tokens for batch in batches)
    assert first.num_completion_tokens == num_arms * sum(batch.num_completion_tokens for batch in batches)
    assert not any(result.diverged for result in results)


def transformers_rates(arm):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=arm.learning_rate)
    schedule = get_scheduler(
        arm.lr_scheduler_type, optimizer, num_warmup_steps=arm.num_warmup_steps, num_training_steps=arm.num_steps
    )  # fmt: skip
    rates = []
    for _ in range(arm.num_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def test_company_changes_nothing(make_engine, base, tmp_path):
    arms = tiny.seven_arms(base)
    arms[0] = replace(arms[0], lora_dropout=0.2)
    steps = tiny.make_steps(6)
    together = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
    for arm in (arms[0], arms[4]):
        alone = tiny.train(make_engine, base, [arm], steps=steps, folder=tmp_path)
        name = arm.experiment_id
        assert tiny.largest_relative(together[0].losses[name], alone[0].losses[name]) <= 1e-6
        assert tiny.largest_difference(together[1][name], alone[1][name]) <= 1e-6


def test_an_arm_that_is_stopped_keeps_its_adapter_and_leaves_the_others_their_bits(
    make_engine, base, tmp_path
):
    arms, steps = tiny.seven_arms(base)[:3], tiny.make_steps(8)
    whole, adapters = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path / "whole")
    log, name = tiny.Log(), arms[1].experiment_id
    with tiny.opened(make_engine(base, arms)) as engine:
        engine.train(steps[:3], on_step=log)
        engine.stop(name)
        before = tiny.adapters_of(engine, tmp_path / "before")
        engine.train(steps[3:], on_step=log)
        after = tiny.adapters_of(engine, tmp_path / "after")
    assert tiny.largest_difference(before[name], after[name]) == 0
    assert log.losses[name] == whole.losses[name][:3]
    for arm in (arms[0], arms[2]):
        assert log.losses[arm.experiment_id] == whole.losses[arm.experiment_id]
        assert tiny.largest_difference(after[arm.experiment_id], adapters[arm.experiment_id]) == 0


@pytest.mark.parametrize("same_shape", [True, False])
def test_an_arm_that_diverges_is_told_with_its_step_and_leaves_the_others_to_the_bit(
    make_engine, base, tmp_path, same_shape
):
    attention, mlp = tiny.targets(base, "qkvo"), tiny.targets(base, "mlp")
    good = [
        tiny.make_arm(attention, name="one", num_warmup_steps=0),
        tiny.make_arm(attention, name="two", num_warmup_steps=0, seed=1, weight_decay=0.1),
    ]
    tame = tiny.make_arm(attention if same_shape else mlp, name="wild", num_warmup_steps=0, seed=2)
    steps = tiny.make_steps(6)
    calm = tiny.train(make_engine, base, [*good, tame], steps=steps, folder=tmp_path)
    wild = replace(tame, learning_rate=1e30)
    log, adapters = tiny.train(make_engine, base, [good[0], wild, good[1]], steps=steps, folder=tmp_path)
    # Step 1 still has the base model's loss; its update makes step 2 overflow.
    assert log.diverged == {"wild": 2}
    assert len(log.losses["wild"]) == 2
    assert log.losses["wild"][1] is None or log.norms["wild"][1] is None
    for name in ("one", "two"):
        assert log.losses[name] == calm[0].losses[name]
        assert log.norms[name] == calm[0].norms[name]
        assert tiny.largest_difference(adapters[name], calm[1][name]) == 0


def test_accumulation_equals_one_larger_batch(make_engine, base, tmp_path):
    arms = [tiny.make_arm(tiny.targets(base, "all"), num_warmup_steps=0)]
    rows = tiny.make_rows(5 * 6, seed=2)
    large = [[assemble(rows[at : at + 6], device=tiny.CPU)] for at in range(0, 30, 6)]
    # Micro-batches of unequal size: the loss is per token of the step, not a mean of means.
    small = [
        [assemble(rows[at : at + 1], device=tiny.CPU), assemble(rows[at + 1 : at + 6], device=tiny.CPU)]
        for at in range(0, 30, 6)
    ]
    one = tiny.train(make_engine, base, arms, steps=large, folder=tmp_path)
    other = tiny.train(make_engine, base, arms, steps=small, folder=tmp_path)
    assert tiny.largest_relative(one[0].losses["a"], other[0].losses["a"]) <= 1e-6
    assert tiny.largest_difference(one[1]["a"], other[1]["a"]) <= 1e-5


def test_a_longer_row_weighs_more_and_every_completion_token_the_same(make_engine, base):
    rows = [tiny.make_row(range(2, 5), prompt_tokens=1), tiny.make_row(range(5, 25), prompt_tokens=1)]
    log = tiny.Log()
    for part in (rows[:1], rows[1:], rows):
        with tiny.opened(make_engine(base, [tiny.make_arm(tiny.targets(base, "q"))])) as engine:
            engine.train([[assemble(part, device=tiny.CPU)]], on_step=log)
    short, long, both = log.losses["a"]
    assert both == pytest.approx((2 * short + 19 * long) / 21, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_change_no_loss(make_engine, base, tmp_path, dropout):
    arms = [tiny.make_arm(tiny.targets(base, "all"), lora_dropout=dropout, num_warmup_steps=0)]
    steps = tiny.make_steps(4, accumulation=2)
    kept = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
    recomputed = tiny.train(
        make_engine, base, arms, steps=steps, folder=tmp_path, gradient_checkpointing=True
    )
    assert tiny.largest_relative(kept[0].losses["a"], recomputed[0].losses["a"]) <= 1e-6
    assert tiny.largest_difference(kept[1]["a"], recomputed[1]["a"]) <= 1e-6


def test_layers_really_are_recomputed(make_engine, base):
    calls = []
    base.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = {}
    for checkpointing in (False, True):
        arms = [tiny.make_arm(tiny.targets(base, "q"))]
        with tiny.opened(make_engine(base, arms, gradient_checkpointing=checkpointing)) as engine:
            calls.clear()
            engine.train(tiny.make_steps(1), on_step=tiny.Log())
            counts[checkpointing] = len(calls)
    assert counts == {False: 1, True: 2}


def test_asking_between_steps_leaves_training_as_it_was(make_engine, base, tmp_path):
    attention = tiny.targets(base, "qkvo")
    arms = [
        tiny.make_arm(attention, name=name, lora_dropout=0.1, seed=seed) for seed, name in enumerate("xyz")
    ]
    steps = tiny.make_steps(4)
    quiet = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
    batch, prompts = steps[-1][0], [(3, 4, 5), (6,)]
    log = tiny.Log()
    with tiny.opened(make_engine(base, arms)) as engine:

        def ask(result):
            log(result)
            before = engine.score(batch).nll_KM
            engine.generate(prompts, max_new_tokens=2)
            assert torch.equal(engine.score(batch).nll_KM, before)

        ask(tiny.EMPTY_RESULT)
        engine.train(steps, on_step=ask)
        adapters = tiny.adapters_of(engine, tmp_path)
    assert log.losses == quiet[0].losses
    assert all(tiny.largest_difference(adapters[name], quiet[1][name]) == 0 for name in "xyz")


def test_dropout_is_drawn_from_the_arms_seed_and_is_off_in_evaluation(make_engine, base, tmp_path):
    attention = tiny.targets(base, "qkvo")
    dry = tiny.make_arm(attention, name="dry", num_warmup_steps=0)
    wet, other = replace(dry, experiment_id="wet", lora_dropout=0.5), replace(
        dry, experiment_id="other", lora_dropout=0.5, seed=1
    )  # fmt: skip
    steps = tiny.make_steps(4)
    first = tiny.train(make_engine, base, [dry, wet, other], steps=steps, folder=tmp_path)
    torch.rand(3)  # somebody else draws from torch's own stream
    second = tiny.train(make_engine, base, [other, wet], steps=steps, folder=tmp_path)
    for name in ("wet", "other"):
        assert tiny.largest_difference(first[1][name], second[1][name]) <= 1e-6
    # lora_B is zero in step 1, so no loss shows a mask before step 2.
    assert first[0].losses["wet"][0] == pytest.approx(first[0].losses["dry"][0], rel=1e-6)
    assert first[0].losses["wet"][1] != pytest.approx(first[0].losses["dry"][1], rel=1e-6)
    with tiny.opened(make_engine(base, [wet])) as engine:
        engine.train(steps, on_step=tiny.Log())
        engine.save_adapter(engine.arms[0], tmp_path / "wet")
        scored = engine.score(steps[0][0]).nll_KM.sum().item()
        assert engine.score(steps[0][0]).nll_KM.sum().item() == scored
    rows = tiny.make_rows(4)
    loaded = PeftModel.from_pretrained(base.model, str(tmp_path / "wet")).eval()
    with torch.no_grad():
        mean = per_row_loss(loaded, rows)
    assert scored / steps[0][0].num_completion_tokens == pytest.approx(mean, rel=1e-5)


def test_scores_are_those_of_the_saved_adapter(make_engine, base, tmp_path):
    rows = tiny.make_rows(5, seed=8)
    batch = assemble(rows, device=tiny.CPU)
    with tiny.opened(make_engine(base, tiny.seven_arms(base))) as engine:
        engine.train(tiny.make_steps(5), on_step=tiny.Log())
        tiny.adapters_of(engine, tmp_path)
        scores = engine.score(batch)
        ids = engine.experiment_ids
        assert ids == tuple(arm.experiment_id for arm in engine.arms)
    assert scores.nll_KM.shape == scores.correct_KM.shape == (7, batch.num_completion_tokens)
    assert scores.nll_KM.dtype is torch.float32
    for number in range(7):
        model = PeftModel.from_pretrained(tiny.make_model("llama").eval(), str(tmp_path / str(number)))
        for row_number, row in enumerate(rows):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            expected = F.cross_entropy(logits, labels, reduction="none")[labels != -100]
            own = batch.label_row_M == row_number
            torch.testing.assert_close(scores.nll_KM[number][own], expected, rtol=1e-5, atol=1e-5)
            hits = (logits.argmax(-1) == labels)[labels != -100]
            assert torch.equal(scores.correct_KM[number][own], hits)


def test_loaded_adapters_score_and_generate_with_the_bits_of_the_trained_ones(make_engine, base, tmp_path):
    batch = assemble(tiny.make_rows(5, seed=8), device=tiny.CPU)
    prompts = [[5, 6, 7], [8, 9]]

    def measured(engine):
        return engine.score(batch).nll_KM, engine.generate(prompts, max_new_tokens=4)

    with tiny.opened(make_engine(base, tiny.seven_arms(base))) as engine:
        engine.train(tiny.make_steps(5), on_step=tiny.Log())
        tiny.adapters_of(engine, tmp_path)
        trained, answers = measured(engine)
    with tiny.opened(make_engine(base, tiny.seven_arms(base))) as engine:
        for number, arm in enumerate(engine.arms):
            engine.load_adapter(arm, tmp_path / str(number))
        loaded, again = measured(engine)
    assert torch.equal(loaded, trained)
    assert again == answers


def test_the_adapter_of_another_arm_is_not_loaded(make_engine, base, tmp_path):
    small, large = (
        tiny.make_arm(tiny.targets(base, "q"), name=name, r=r) for name, r in (("a", 2), ("b", 3))
    )
    with tiny.opened(make_engine(base, [small, large])) as engine:
        engine.save_adapter(small, tmp_path / "small")
        with pytest.raises(ModelError, match=r"not the adapter of b: .* has shape"):
            engine.load_adapter(large, tmp_path / "small")


def test_an_answer_ends_before_the_end_marker_and_at_the_limit(make_engine):
    base = tiny.make_base("phi")
    prompts = [(5, 6, 7, 8), (9,), (10, 11)]
    arms = [tiny.make_arm(tiny.targets(base, "q"), name=name) for name in "ab"]
    with tiny.opened(make_engine(base, arms)) as engine:
        answers = engine.generate(prompts, max_new_tokens=3)
        assert [len(answer) for answer in answers] == [3, 3]
        assert all(len(ids) == 3 and tiny.EOS not in ids for ids in answers[0])
        base.model.lm_head.bias[tiny.EOS] = 1e4
        assert engine.generate(prompts, max_new_tokens=3) == [[[], [], []]] * 2


def test_a_saved_adapter_is_pefts_own_format(make_engine, base, tmp_path):
    arm = tiny.make_arm(tiny.targets(base, "qv"), r=3, lora_alpha=4.5, use_rslora=True, lora_dropout=0.25)
    with tiny.opened(make_engine(base, [arm])) as engine:
        num_bytes = engine.save_adapter(arm, tmp_path / "one")
    assert num_bytes == (tmp_path / "one" / WEIGHTS_FILE).stat().st_size > 0
    config = json.loads((tmp_path / "one" / CONFIG_FILE).read_text())
    assert (config["peft_type"], config["task_type"], config["base_model_name_or_path"]) == (
        "LORA",
        "CAUSAL_LM",
        "llama",
    )
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["lora_dropout"]) == (
        3,
        4.5,
        True,
        0.25,
    )
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    weights = tiny.read_adapter(tmp_path / "one")
    prefix = "base_model.model.model.layers.0.self_attn"
    assert len(weights) == 2 * 2 * 2
    assert weights[f"{prefix}.q_proj.lora_A.weight"].shape == (3, 48)
    assert weights[f"{prefix}.v_proj.lora_B.weight"].shape == (24, 3)
    assert all(tensor.dtype is torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_base_is_given_back_as_it_was(make_engine, architecture):
    base = tiny.make_base(architecture)
    ids = torch.tensor([[3, 4, 5]])
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    types = [(name, type(module)) for name, module in base.model.named_modules()]
    with torch.no_grad():
        logits = base.model(ids).logits
    for _ in range(2):  # a second engine finds what the first one found
        with tiny.opened(make_engine(base, tiny.seven_arms(base), gradient_checkpointing=True)) as engine:
            engine.train(tiny.make_steps(2), on_step=tiny.Log())
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [(name, type(module)) for name, module in base.model.named_modules()] == types
    assert not any(module.training for module in base.model.modules())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_fp32(make_engine, tmp_path, dtype):
    losses = {}
    for precision in (torch.float32, dtype):
        base = tiny.make_base(dtype=precision)
        arms = [
            tiny.make_arm(tiny.targets(base, "qkvo"), name="a", learning_rate=5e-3, r=6, lora_alpha=8.0),
            tiny.make_arm(tiny.targets(base, "mlp"), name="b", learning_rate=5e-3, num_warmup_steps=0),
        ]
        rows = tiny.make_rows(4, seed=1)
        steps = [[assemble(rows, device=tiny.CPU)]] * 20
        log, adapters = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
        assert all(tensor.dtype is torch.float32 for tensor in adapters["a"].values())
        losses[precision] = log.losses
    for name in "ab":
        full, half = losses[torch.float32][name], losses[dtype][name]
        assert full[-1] < full[0] - 0.3  # it learns these four rows
        # bf16 rounds to 0.4 %, fp16 to 0.05 %; and fp16 may skip first steps until its loss scale fits.
        assert half[-1] == pytest.approx(full[-1], rel=0.03)
        assert all(math.isfinite(loss) for loss in half)


# --- going on from a state --------------------------------------------------------------------------------


class BrokenOffError(Exception):
    pass


def train_in_two(make_engine, base, arms, *, steps, folder, num_told, then=None):
    """Train, break off once so many steps were told, and let a fresh engine go on from the state as a file has it."""
    kept = []
    first = tiny.Log()

    def on_step(result):
        first(result)
        kept.append(result)
        if len(kept) == num_told:
            write_checkpoint(folder / "saved", Checkpoint(state=engine.state(), notes={}))
            raise BrokenOffError

    with tiny.opened(make_engine(base, arms)) as engine, pytest.raises(BrokenOffError):
        engine.train(steps, on_step=on_step)
    state = read_checkpoint(folder / "saved").state
    with tiny.opened(make_engine(base, then or arms)) as engine:
        engine.restore(state)
        engine.train(steps[engine.num_steps_done :], on_step=first)
        return first, tiny.adapters_of(engine, folder)


def test_a_state_of_another_version_is_not_read(make_engine, base, tmp_path):
    """Its tensors have the same sizes, but may hold their numbers in another order."""
    with tiny.opened(make_engine(base, tiny.seven_arms(base)[:1])) as engine:
        state = replace(engine.state(), version=1)
        write_checkpoint(tmp_path / "saved", Checkpoint(state=state, notes={}))
    with pytest.raises(OtherVersionError, match="it has format 1, and this version has"):
        read_checkpoint(tmp_path / "saved")


@pytest.mark.parametrize(
    ("make_engine", "dtype", "num_told"),
    [
        *(("packed", *restored) for restored in RESTORED),
        ("reference", *RESTORED[1]),
        *(pytest.param("reference", *RESTORED[number], marks=pytest.mark.slow) for number in (0, 2, 3)),
    ],
    indirect=["make_engine"],
)
def test_a_restored_engine_goes_on_to_the_very_same_bits(make_engine, tmp_path, num_told, dtype):
    """Dropout, accumulation, arms of unequal length, one that diverges, and the loss scale of fp16."""
    base = tiny.make_base(dtype=dtype)
    arms = [*tiny.seven_arms(base), *with_dropout(base)]
    arms = [replace(arm, num_steps=min(arm.num_steps, 5 + number)) for number, arm in enumerate(arms)]
    arms[1] = replace(arms[1], learning_rate=1e30, num_warmup_steps=0)
    steps = tiny.make_steps(max(arm.num_steps for arm in arms), accumulation=2, batch_size=2)
    num_told = min(num_told, len(steps) - 1) if make_engine is tiny.ENGINES["packed"] else num_told
    whole = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path / "whole")
    log, adapters = train_in_two(make_engine, base, arms, steps=steps, folder=tmp_path, num_told=num_told)
    assert log.losses == whole[0].losses
    assert log.norms == whole[0].norms
    assert log.rates == whole[0].rates
    assert log.diverged == whole[0].diverged
    for name, adapter in whole[1].items():
        assert all(torch.equal(adapter[key], adapters[name][key]) for key in adapter), name


def with_dropout(base):
    attention = tiny.targets(base, "qkvo")
    return [tiny.make_arm(attention, name=f"wet {seed}", lora_dropout=0.3, seed=seed) for seed in range(2)]


def test_a_part_of_a_pack_goes_on_from_the_states_of_the_whole(make_engine, base, tmp_path):
    """Bit for bit where arms are trained one by one; together, sums come in another order in other company."""
    arms = [*tiny.seven_arms(base), *with_dropout(base)]
    steps = tiny.make_steps(20)
    whole = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path / "whole")
    tolerance = 0 if make_engine is tiny.ENGINES["reference"] else 1e-5
    for part in (arms[:4], arms[4:]):
        _, adapters = train_in_two(
            make_engine, base, arms, steps=steps, folder=tmp_path, num_told=9, then=part
        )
        assert adapters.keys() == {arm.experiment_id for arm in part}
        for name, adapter in adapters.items():
            assert tiny.largest_difference(adapter, whole[1][name]) <= tolerance
        shutil.rmtree(tmp_path / "saved")


def test_a_state_is_a_copy_and_says_where_it_was(make_engine, base):
    arms = tiny.seven_arms(base)
    states = []
    with tiny.opened(make_engine(base, arms)) as engine:
        assert engine.num_steps_done == 0
        before = engine.state()
        engine.train(tiny.make_steps(20), on_step=lambda _: states.append(engine.state()))
        after = engine.state()
        assert engine.num_steps_done == 20
    assert {arm.experiment_id for arm in after.arms} == {arm.experiment_id for arm in arms}
    assert after.engine == before.engine == engine.name
    for one, other in zip(before.arms, after.arms, strict=True):
        assert one.num_steps_done == 0
        assert any(not torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    with pytest.raises(KeyError):
        after.of(["of another pack"])
