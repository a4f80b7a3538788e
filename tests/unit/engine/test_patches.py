import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import tiny
from lorastudy.engine.patches import labels_only_mlp, last_mlp, on_labels_only, without_padding_warning

pytestmark = pytest.mark.usefixtures("one_thread")
INDEX = torch.tensor([1, 4, 5])


class Recorder(nn.Module):
    """Doubles, and keeps how many tokens it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape[1])
        return 2 * x


def test_the_mlp_is_given_labelled_tokens_alone_and_says_nothing_of_the_others():
    mlp, x = Recorder(), torch.arange(16.0).view(1, 8, 2).requires_grad_()
    with on_labels_only(mlp, INDEX):
        y = mlp(x)
    assert mlp.seen == [3]
    assert torch.equal(y[:, INDEX], 2 * x[:, INDEX])
    rest = [number for number in range(8) if number not in INDEX.tolist()]
    assert not y[:, rest].any()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx[0, :, 0], torch.tensor([0.0, 2.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]))
    mlp(x)
    assert mlp.seen == [3, 8]


def engine_of(base, **settings):
    return tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "all"), num_steps=3)], **settings)


def losses(engine, steps):
    seen = []
    with tiny.opened(engine):
        engine.train(steps, on_step=lambda result: seen.append(result.arms[0].loss))
    return seen


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_trains_to_the_same_losses_with_and_without(architecture, monkeypatch):
    steps = tiny.make_steps(3)
    engine = engine_of(tiny.make_base(architecture))
    assert engine._labels_only_mlp is not None
    sparing = losses(engine, steps)
    monkeypatch.setattr("lorastudy.engine.packed.labels_only_mlp", lambda *_, **__: None)
    assert sparing == pytest.approx(losses(engine_of(tiny.make_base(architecture)), steps), rel=1e-6)


def test_recomputed_activations_are_of_the_same_tokens():
    steps = tiny.make_steps(3)
    kept = losses(engine_of(tiny.make_base()), steps)
    assert losses(engine_of(tiny.make_base(), gradient_checkpointing=True), steps) == pytest.approx(
        kept, rel=1e-6
    )


def test_a_model_whose_tokens_meet_after_attention_is_run_whole():
    base = tiny.make_base()
    mlp = last_mlp(base.model)
    own = mlp.forward

    def mixing(x):
        return own(x) + x.mean(dim=1, keepdim=True)

    mlp.forward = mixing

    def hidden_states():
        return base.model.base_model(input_ids=torch.arange(2, 10)[None], use_cache=False)[0]

    assert labels_only_mlp(base.model, index_M=INDEX, hidden_states=hidden_states) is None
    mlp.forward = own
    assert labels_only_mlp(base.model, index_M=INDEX, hidden_states=hidden_states) is mlp


def test_a_model_whose_mlp_wants_more_than_its_tokens_is_run_whole():
    base = tiny.make_base()
    layer = base.model.base_model.layers[-1]

    class Resident(nn.Module):
        """Adds the residual stream itself, as Bloom's does."""

        def __init__(self, mlp):
            super().__init__()
            self.inner = mlp

        def forward(self, x, residual):
            return self.inner(x) + residual

    layer.mlp = Resident(layer.mlp)
    layer.forward = lambda x, **_: layer.mlp(layer.post_attention_layernorm(x), x)

    def hidden_states():
        return base.model.base_model(input_ids=torch.arange(2, 10)[None], use_cache=False)[0]

    assert hidden_states().shape == (1, 8, 48)
    assert labels_only_mlp(base.model, index_M=INDEX, hidden_states=hidden_states) is None


def test_no_memory_for_the_question_is_no_answer():
    base = tiny.make_base()
    calls = []

    def hidden_states():
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError
        return torch.zeros(1, 8, 4)

    with pytest.raises(torch.OutOfMemoryError):
        labels_only_mlp(base.model, index_M=INDEX, hidden_states=hidden_states)


def test_a_layer_without_an_mlp_of_that_name_has_none():
    model = tiny.make_base().model
    del model.base_model.layers[-1].mlp
    assert last_mlp(model) is None


def test_in_training_no_model_looks_for_padding(monkeypatch):
    """GPT-2 looks for it in every forward pass."""
    looked = []
    monkeypatch.setattr(
        PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *_: looked.append("padding")
    )
    base = tiny.make_base("gpt2")
    ids = torch.tensor([[2, 3]])
    with without_padding_warning(base.model):
        base.model(ids)
    assert not looked
    base.model(ids)
    assert looked
    assert "warn_if_padding_and_no_attention_mask" not in vars(base.model.base_model)
