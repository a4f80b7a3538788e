"""Loading a frozen base model: folder, hub id or `lab`, in the precision of the settings, safetensors only.

A hub model is first downloaded, at the commit that the plan uses, and then loaded as a local folder: transformers
itself never accesses the hub. Only the needed files are downloaded.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.quantised import keep_trainable_on_cpu, quantization_config
from lorastudy.engine.targets import linear_modules, target_layers
from lorastudy.errors import DataError, ModelError, StudyError, first_line
from lorastudy.lab import base_folder
from lorastudy.protocol.jobs import NEEDS_GPU_VARIABLE
from lorastudy.protocol.records import Score
from lorastudy.suite.base_model import cached_commit, model_folder_problem, unreachable_message
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import TargetLayer

#: The files of a hub model that are downloaded: never a pickle.
_FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")

#: The errors that transformers raises for files that are damaged, from another version, or malicious.
_UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RecursionError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip

#: The keys under which configurations give the largest number of positions of a row.
_POSITION_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A frozen causal LM in eval mode, with its tokenizer.

    Adapters name `name` as their base. `linear_layers` are the model's own layers by name, even while an engine
    replaces them.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    eos_token_id: int
    pad_token_id: int
    linear_layers: Mapping[str, nn.Module]
    checked: dict[object, Any] = field(default_factory=dict, repr=False)
    """What the checks of `engine.choice` found, by what they were about. They pass again with the same model."""

    @cached_property
    def target_layers(self) -> tuple[TargetLayer, ...]:
        """The layers that an adapter can adapt. Read this before an engine replaces any."""
        return target_layers(self.model)

    @cached_property
    def targets_by_name(self) -> Mapping[str, TargetLayer]:
        """Name -> layer, in the model's order."""
        return {layer.name: layer for layer in self.target_layers}

    @cached_property
    def module_names(self) -> tuple[str, ...]:
        """The names of all modules of the model, which PEFT matches. Read this before an engine replaces any."""
        return tuple(name for name, _ in self.model.named_modules())


def dtype_of(quantization: str) -> torch.dtype:
    """The precision of everything in the base that is not quantised."""
    return _DTYPES.get(quantization, torch.bfloat16)


def default_device() -> torch.device:
    """The first CUDA device, else the CPU.

    Raises:
        StudyError: this worker must have a GPU, and torch sees none. On the CPU the study would take days.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if NEEDS_GPU_VARIABLE in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise StudyError(
            f"this worker was started for a GPU, and torch {torch.__version__} sees none (CUDA_VISIBLE_DEVICES is "
            f"{'not set' if visible is None else repr(visible)}). Look whether `nvidia-smi` lists the GPU and whether torch "
            "was built for CUDA. To train on the CPU, set CUDA_VISIBLE_DEVICES to nothing: CUDA_VISIBLE_DEVICES= lorastudy ..."
        )
    return torch.device("cpu")


def load_base(settings: Settings, *, device: torch.device) -> BaseModel:
    """The base model of an experiment, frozen.

    The base's own dropout stays off (`eval`): only LoRA dropout is part of an experiment. 4-bit and 8-bit
    layers keep their other weights in bf16.

    Raises:
        ModelError: the model cannot be found, reached or read. The message has the fix.
    """
    path = local_folder(settings.base_model, with_code=settings.trust_remote_code)
    dtype = dtype_of(settings.quantization)
    quantization = quantization_config(
        settings.quantization,
        quant_type=settings.bnb_4bit_quant_type,
        double_quant=settings.bnb_4bit_use_double_quant,
    )
    tokenizer = load_tokenizer(settings.base_model, trust_remote_code=settings.trust_remote_code)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": str(device)} if quantization else None,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except _UNREADABLE as error:
        raise _unloadable(settings.base_model, error) from error
    unfilled = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if unfilled:
        # transformers fills missing weights with random numbers and only logs it.
        raise ModelError(
            f"base_model: {settings.base_model}: its files hold no weights that fit {min(unfilled)}"
        )
    # `generate` reads its defaults from this field, and a repetition penalty would make answers not greedy.
    model.generation_config = GenerationConfig()
    if quantization is None:
        model.to(device)
    model.requires_grad_(requires_grad=False).eval()
    keep_trainable_on_cpu(model)
    assert tokenizer.eos_token_id is not None
    return BaseModel(
        name=settings.base_model,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        eos_token_id=int(tokenizer.eos_token_id),
        pad_token_id=int(
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ),
        linear_layers=linear_modules(model),
    )


def kept_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of weights in the machine's memory, to give the base its own again after an arm has changed them."""
    return [weight.detach().to("cpu", copy=True) for weight in weights]


def num_positions(config: Any) -> int | None:
    """The largest number of tokens of a row; None if the configuration has no limit."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in _POSITION_LIMITS)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def num_embeddings(config: Any) -> int:
    """The number of token ids with an embedding. Ids count from 0."""
    return int(config.get_text_config().vocab_size)


def check_rows(
    rows: Iterable[TokenRow], *, config: Any, base_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse rows for which the model has no position or no embedding, since it would read beyond its tables.

    A plan makes the same check, so a run finds no new errors.

    Raises:
        DataError: a row is too long, or has a token that only the tokenizer knows.
    """
    limit, size = num_positions(config), num_embeddings(config)
    longest = largest = num_rows = num_unknown = 0
    for row in rows:
        largest_here = max(row.input_ids)
        longest, largest = max(longest, len(row.input_ids)), max(largest, largest_here)
        num_rows += 1
        num_unknown += largest_here >= size
    if limit is not None and longest > limit:
        raise DataError(
            f"max_seq_length: {base_model} has {limit} positions, and the longest row has {longest} tokens; "
            f"lower it to {limit}"
        )
    if largest >= size:
        raise DataError(
            f"base_model: {base_model}: {num_unknown} of {num_rows} rows have tokens that its tokenizer knows and the model has "
            f"no embedding for: {tokenizer.convert_ids_to_tokens(largest)!r} is token {largest}, and the embeddings are those "
            f"of 0 to {size - 1}. Tokens were added to the tokenizer alone, or it belongs to another model: put the model's own "
            "tokenizer into its folder, or resize and save the model: model.resize_token_embeddings(len(tokenizer)); "
            "model.save_pretrained(FOLDER)"
        )


def load_tokenizer(base_model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        ModelError: it cannot be found or has no end-of-text token.
    """
    path = local_folder(base_model, with_code=trust_remote_code)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a file that it cannot read, tokenizers raises a plain Exception
        raise _unloadable(base_model, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"base_model: {base_model}: its tokenizer has no end-of-text token, which answers must end with"
        )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def local_folder(base_model: str, *, with_code: bool) -> str:
    """The folder of a base model. A hub model is downloaded, at the commit that identifies its experiments.

    Raises:
        ModelError: the model cannot be downloaded or must not be read.
    """
    if base_model == "lab":
        return str(base_folder())
    folder = Path(base_model)
    if not folder.is_dir():
        patterns = [*_FETCHED, *(["*.py"] if with_code else [])]
        commit = cached_commit(base_model)
        try:
            folder = Path(snapshot_download(base_model, revision=commit, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise _unloadable(base_model, error) from error
    problem = model_folder_problem(folder)
    if problem is not None:
        raise ModelError(f"base_model: {base_model}: {problem}")
    return str(folder)


def _unloadable(base_model: str, error: Exception) -> ModelError:
    cause = first_line(error)
    if "trust_remote_code" in str(error):
        return ModelError(
            f"base_model: {base_model}: wants to run Python code of its own. Read that code; if you trust it, set "
            "trust_remote_code: true in the suite, or give --trust-remote-code"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(f"base_model: {base_model}: the Hugging Face hub has no such model, or not for you")
    if Path(base_model).is_dir() or cached_commit(base_model) is not None:
        return ModelError(
            f"base_model: {base_model}: cannot be loaded: {cause}. A model folder holds config.json, the tokenizer's "
            "files and *.safetensors."
        )
    return ModelError(f"{unreachable_message(base_model)}. Cause: {cause}")


@dataclass(kw_only=True)
class BaseCache:
    """Keeps the base model and its own scores from one pack to the next. Packs of one base are consecutive."""

    key: object = None
    base: BaseModel | None = None
    scores: dict[object, tuple[Score, ...]] = field(default_factory=dict)
    """By engine, kind of algorithms, split and rows."""

    def get(self, settings: Settings, *, device: torch.device) -> BaseModel:
        """The base model of these settings. Loads it only if it differs from the last one."""
        key = (
            settings.base_model, settings.quantization, settings.bnb_4bit_quant_type,
            settings.bnb_4bit_use_double_quant, settings.trust_remote_code,
        )  # fmt: skip
        if self.base is None or key != self.key:
            self.base = None  # free the old one before the new one is loaded
            self.scores.clear()
            self.base, self.key = load_base(settings, device=device), key
        return self.base
