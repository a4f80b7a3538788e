"""Random models of a few kilobytes, rows for them and arms on them: what the device-side tests share."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.adapters import WEIGHTS_FILE
from lorastudy.engine.arms import Engine, StepResult, TrainingArm
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.engine.targets import linear_modules
from lorastudy.suite.targets import resolve_targets

CPU = torch.device("cpu")
VOCAB = 128
ARCHITECTURES = ("llama", "gpt2", "phi", "qwen2")
#: Only a part of a head's channels turns (gpt_neox, phi3); angles in fp32, and norms that multiply before they round (olmo2).
OTHER_ARCHITECTURES = {
    "gpt_neox": GPTNeoXConfig,
    "phi3": partial(Phi3Config, partial_rotary_factor=0.5),
    "olmo2": Olmo2Config,
}
ENGINES = {"packed": PackedEngine, "reference": ReferenceEngine}
PAD, EOS = 0, 1
EMPTY_RESULT = StepResult(step=0, num_tokens=0, num_completion_tokens=0, arms=())


def config(architecture: str, *, hidden_size: int = 48) -> Any:
    """Two layers; Llama and Qwen2 share keys and values between heads, Qwen2 and Phi and GPT-2 have biases."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "max_position_embeddings": 128,
        # Five times the usual spread: attention and adapters then matter to the logits, as in a trained model.
        "initializer_range": 0.1,
    }
    if architecture == "llama":
        return LlamaConfig(num_key_value_heads=2, **shape)
    if architecture == "qwen2":
        return Qwen2Config(num_key_value_heads=2, **shape)
    if architecture == "phi":
        return PhiConfig(**shape)
    if architecture in OTHER_ARCHITECTURES:
        return OTHER_ARCHITECTURES[architecture](**shape)
    assert architecture == "gpt2"
    return GPT2Config(
        vocab_size=VOCAB, n_embd=hidden_size, n_layer=2, n_head=4, n_positions=128, bos_token_id=None,
        eos_token_id=EOS, initializer_range=0.1,
    )  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `w2` to `w127`; decoding joins them with spaces."""
    vocabulary = {"<pad>": PAD, "<eos>": EOS} | {f"w{number}": number for number in range(2, VOCAB)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def make_model(architecture: str, *, hidden_size: int = 48, seed: int = 0) -> Any:
    """A random model in fp32, biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config(architecture, hidden_size=hidden_size), dtype=torch.float32, attn_implementation="sdpa"
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.2)
    return model


def make_base(
    architecture: str = "llama", *, dtype: torch.dtype = torch.float32, hidden_size: int = 48, seed: int = 0
) -> BaseModel:
    """A frozen base around a random model."""
    model = make_model(architecture, hidden_size=hidden_size, seed=seed).to(dtype)
    model.requires_grad_(requires_grad=False).eval()
    return BaseModel(
        name=architecture,
        model=model,
        tokenizer=tokenizer(),
        device=CPU,
        dtype=dtype,
        eos_token_id=EOS,
        pad_token_id=PAD,
        linear_layers=linear_modules(model),
    )


def save_base(folder: Path, *, architecture: str = "llama", hidden_size: int = 64, seed: int = 0) -> Path:
    """A model folder as a user has it."""
    make_model(architecture, hidden_size=hidden_size, seed=seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_byte_model(folder: Path) -> None:
    """A random model of two layers whose tokens are bytes, so that it knows every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {letter: number for number, letter in enumerate(letters, start=1)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = LlamaConfig(
            vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=0, initializer_range=0.2, **shape
        )
        AutoModelForCausalLM.from_config(settings).save_pretrained(folder)


def targets(base: BaseModel, target_modules: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the modules that a preset or a list selects."""
    return resolve_targets(base.target_layers, target_modules=target_modules, layers_to_transform=None)


def make_arm(module_names: Sequence[str], *, name: str = "a", **values: Any) -> TrainingArm:
    """An arm with ordinary settings; `lora_alpha` and `scaling` follow `r` and each other.

    But for epsilon: with Adam's usual 1e-8 a gradient that cancels to rounding noise makes a step of full size. In
    20 steps at these rates PEFT in fp32 then ends as far as 2.7e-4 from PEFT in float64 in some weight, and no two
    orders of summation agree. (`test_optimise` compares AdamW itself at 1e-8.)
    """
    r = values.pop("r", 4)
    alpha = values.pop("lora_alpha", 2.0 * r)
    rslora = values.pop("use_rslora", False)
    settings = {
        "experiment_id": name,
        "seed": 0,
        "lora_dropout": 0.0,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "linear",
        "num_warmup_steps": 2,
        "num_steps": 20,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-6,
    }
    return TrainingArm(
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        scaling=alpha / (r**0.5 if rslora else r),
        module_names=tuple(module_names),
        **(settings | values),
    )


def seven_arms(base: BaseModel) -> list[TrainingArm]:
    """Arms that differ in all that arms may differ in, but dropout."""
    attention, mlp, everything = (targets(base, preset) for preset in ("qkvo", "mlp", "all"))
    return [
        make_arm(attention, name="plain"),
        make_arm(attention, name="rank and rate", r=8, lora_alpha=16.0, learning_rate=1e-3, seed=1),
        make_arm(mlp, name="mlp", r=2, lora_alpha=16.0, weight_decay=0.1),
        make_arm(attention, name="cosine", lr_scheduler_type="cosine", adam_beta1=0.8, adam_beta2=0.95),
        make_arm(everything, name="all", r=16, lora_alpha=16.0, use_rslora=True, learning_rate=2e-4),
        make_arm(attention, name="clipped", r=8, lora_alpha=24.0, max_grad_norm=0.3, num_warmup_steps=0),
        make_arm(mlp, name="short", r=2, num_steps=12, lr_scheduler_type="constant", max_grad_norm=0.0),
    ]


def make_row(ids: Sequence[int], *, prompt_tokens: int) -> TokenRow:
    """A row whose first `prompt_tokens` are not trained."""
    ids = tuple(ids)
    return TokenRow(
        input_ids=ids,
        labels=(-100,) * prompt_tokens + ids[prompt_tokens:],
        prompt_ids=ids[:prompt_tokens],
        prompt_text=" ".join(f"w{number}" for number in ids[:prompt_tokens]),
        reference=" ".join(f"w{number}" for number in ids[prompt_tokens:]),
    )


def make_rows(count: int, *, seed: int = 0, longest: int = 24) -> list[TokenRow]:
    """Rows of unequal length with prompts of unequal length."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(5, longest)
        ids = [draw.randrange(2, VOCAB) for _ in range(length)]
        rows.append(make_row(ids, prompt_tokens=draw.randint(1, length - 2)))
    return rows


def make_steps(
    num_steps: int, *, accumulation: int = 1, batch_size: int = 4, seed: int = 0
) -> list[list[Batch]]:
    """Batches by step and micro-batch."""
    rows = iter(make_rows(num_steps * accumulation * batch_size, seed=seed))
    return [
        [assemble([next(rows) for _ in range(batch_size)], device=CPU) for _ in range(accumulation)]
        for _ in range(num_steps)
    ]


@contextmanager
def opened(engine: Engine) -> Iterator[Any]:
    """The engine, closed at the end whatever happens."""
    try:
        yield engine
    finally:
        engine.close()


class Log:
    """What an engine told of its steps, by experiment."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float | None]] = {}
        self.norms: dict[str, list[float | None]] = {}
        self.rates: dict[str, list[float]] = {}
        self.diverged: dict[str, int] = {}

    def __call__(self, result: Any) -> None:
        for arm in result.arms:
            self.losses.setdefault(arm.experiment_id, []).append(arm.loss)
            self.norms.setdefault(arm.experiment_id, []).append(arm.grad_norm)
            self.rates.setdefault(arm.experiment_id, []).append(arm.learning_rate)
        for experiment_id in result.diverged:
            self.diverged[experiment_id] = result.step


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights in an adapter folder."""
    return load_file(folder / WEIGHTS_FILE)


def adapters_of(engine: Engine, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Save every arm in a folder by its number; return their weights as saved."""
    for number, arm in enumerate(engine.arms):
        engine.save_adapter(arm, folder / str(number))
    return {arm.experiment_id: read_adapter(folder / str(number)) for number, arm in enumerate(engine.arms)}


def train(
    make_engine: Callable[..., Engine], base: BaseModel, arms: Sequence[TrainingArm], *, steps: Any, folder: Path,
    **options: Any,
) -> tuple[Log, dict[str, dict[str, Tensor]]]:  # fmt: skip
    """Train from scratch; the log and the final adapters."""
    log = Log()
    with opened(make_engine(base, arms, **options)) as engine:
        engine.train(steps, on_step=log)
        return log, adapters_of(engine, folder)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference between two adapters."""
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


def largest_relative(losses: Sequence[float], others: Sequence[float]) -> float:
    """The largest relative difference between two runs of losses."""
    assert len(losses) == len(others) > 0
    return max(abs(one - other) / abs(other) for one, other in zip(losses, others, strict=True))


def with_names(arms: Sequence[TrainingArm], prefix: str) -> list[TrainingArm]:
    """The same arms under other names."""
    return [replace(arm, experiment_id=f"{prefix}{arm.experiment_id}") for arm in arms]
