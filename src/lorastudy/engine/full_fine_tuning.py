"""Full fine-tuning: all weights of the base train, in the plain loop of the reference engine, without PEFT.

In fp32 the optimizer changes the model's own weights. In bf16 and fp16 the model computes in half precision, and the
optimizer has its own fp32 weights: a learning rate of full fine-tuning changes a weight by less than bf16 can show. After
each backward pass a gradient is added to an fp32 one, and after each step the fp32 weights are rounded into the model. So
the trained model, as it is scored and saved, is in the base's precision.

The base is shared with later packs. The engine keeps a copy of its weights in the machine's memory and puts it back.

As in transformers' Trainer, weight decay does not act on vectors: norms and biases.
"""

import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorastudy.engine import loading
from lorastudy.engine.arms import EngineState, TokenScores, TrainingArm
from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel, local_folder
from lorastudy.engine.padded_forward import greedy_answers, label_logits
from lorastudy.engine.peft_model import make_optimizer
from lorastudy.engine.reference import ArmTrainer, ReferenceEngine, add_noise
from lorastudy.errors import FOREIGN_ERRORS, ModelError, first_line

#: What a model folder holds besides configuration and weights: the tokenizer and its layout.
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")

#: Written anew with the weights, since they describe these.
_OF_WEIGHTS = frozenset({"config.json", "model.safetensors.index.json"})


class FullFineTuning(ReferenceEngine):
    """The reference engine with one arm that has no adapter: it trains the base itself. Owns the base while it lives."""

    frees_gradients = False  # the peak is then the same with and without accumulation, and known before

    def __init__(
        self, base: BaseModel, arms: Sequence[TrainingArm], *, gradient_checkpointing: bool = False
    ) -> None:
        """Make all weights of the base trainable."""
        (arm,) = arms
        assert arm.method.is_full, "an adapter trains in PEFT's model"
        self.arms = (arm,)
        self._base = base
        self._model: Any = base.model
        self._gradient_checkpointing = gradient_checkpointing
        self._weights = list(base.model.parameters())
        self._kept = loading.kept_weights(self._weights)
        self._trained = self._weights
        self._hooks: list[Any] = []
        self._noise = add_noise(self._model, self.arms)
        base.model.requires_grad_(requires_grad=True)
        try:
            if base.dtype is not torch.float32:
                self._trained = [nn.Parameter(weight.detach().float()) for weight in self._weights]
            self._hooks += [_adding(weight, to=trained) for weight, trained in self._pairs()]
            self._trainers = {"": self._new_trainer(arm)}
        except BaseException:
            # After an error such as out of memory, restore the base, since the next engine uses it.
            self.close()
            raise
        self._names = {"": arm}

    def restore(self, state: EngineState) -> None:
        """Go on from a state."""
        super().restore(state)
        self._round_into_model()

    def score(self, batch: Batch) -> TokenScores:
        """Score a batch."""
        return scored(self._base, batch)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[0][prompt]`, up to and without the end-of-text token."""
        return [greedy_answers(self._base, prompts, copies=1, max_new_tokens=max_new_tokens)]

    def save_adapter(self, arm: TrainingArm, folder: Path) -> int:
        """Write the trained model as a folder that transformers loads; return the bytes of its weights."""
        assert arm is self.arms[0]
        return save_model(self._base, folder)

    @torch.no_grad()
    def load_adapter(self, arm: TrainingArm, folder: Path) -> None:
        """Give the model the weights that `save_adapter` wrote.

        Raises:
            ModelError: the folder holds no model, or another one.
        """
        assert arm is self.arms[0]
        load_weights(self._base, folder)
        for weight, trained in self._pairs():
            trained.copy_(weight)

    @torch.no_grad()
    def close(self) -> None:
        """Give the base its own weights again and freeze it."""
        self._stop_noise()
        for hook in self._hooks:
            hook.remove()
        for weight, own in zip(self._weights, self._kept, strict=True):
            weight.grad = None
            weight.copy_(own)
        self._base.model.requires_grad_(requires_grad=False)

    def _activate(self, adapter_name: str) -> None:
        """There is one arm, which is always active."""

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Each weight of the model with the optimizer's own; none in fp32, where they are the same."""
        if self._trained is self._weights:
            return iter(())
        return zip(self._weights, self._trained, strict=True)

    def _new_trainer(self, arm: TrainingArm) -> ArmTrainer:
        matrices = [weight for weight in self._trained if weight.dim() > 1]
        vectors = [weight for weight in self._trained if weight.dim() <= 1]
        groups: Any = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = make_optimizer(self._model, arm, parameters=[each for each in groups if each["params"]])
        for group in optimizer.param_groups:
            if "foreach" in group:  # it would need temporaries as large as all weights
                group["foreach"] = False
        if self._trained is not self._weights:
            optimizer.register_step_post_hook(lambda *_: self._round_into_model())
        return ArmTrainer(
            arm, self._trained, optimizer=optimizer, device=self._base.device, dtype=self._base.dtype
        )

    @torch.no_grad()
    def _round_into_model(self) -> None:
        for weight, trained in self._pairs():
            weight.copy_(trained)


def _adding(weight: Any, *, to: nn.Parameter) -> Any:
    """Add the weight's gradients in half precision to fp32 ones, and free them. Returns the hook that does it."""

    def add(_: Tensor) -> None:
        gradient = weight.grad.float()
        if to.grad is None:
            to.grad = gradient
        else:
            to.grad.add_(gradient)
        weight.grad = None

    return weight.register_post_accumulate_grad_hook(add)


@torch.no_grad()
def scored(base: BaseModel, batch: Batch) -> TokenScores:
    """The scores of the base itself, as of one arm."""
    logits_MV = label_logits(base.model, batch)
    nll_M = F.cross_entropy(logits_MV, batch.targets_M, reduction="none")
    correct_M = logits_MV.argmax(dim=-1) == batch.targets_M
    return TokenScores(nll_KM=nll_M.unsqueeze(0), correct_KM=correct_M.unsqueeze(0))


def save_model(base: BaseModel, folder: Path) -> int:
    """Write the base as a model folder, with the tokenizer's files of the folder that it came from; return the bytes of its weights.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.safetensors"):
        earlier.unlink()  # a process that has the earlier file mapped keeps its bytes
    try:
        base.model.save_pretrained(folder)
    except SafetensorError as error:
        # It has an error of its own for a full disk, which would count as a failure of the pack.
        raise OSError(errno.ENOSPC, first_line(error), str(folder)) from error
    source = Path(local_folder(base.name, with_code=False))
    for path in (path for pattern in _BESIDE_WEIGHTS for path in source.glob(pattern)):
        if path.name not in _OF_WEIGHTS:
            shutil.copyfile(path, folder / path.name)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@torch.no_grad()
def load_weights(base: BaseModel, folder: Path) -> None:
    """Give the base the weights of a saved model of the same shape.

    Raises:
        ModelError: the folder holds no model, or one that differs from the base in more than the values of its weights.
    """
    if not (folder / "config.json").is_file() or next(folder.glob("*.safetensors"), None) is None:
        raise ModelError(
            f"checkpoint: {folder}: has no config.json and no *.safetensors; expected a model folder of full fine-tuning"
        )
    kind: type[PreTrainedModel] = type(base.model)
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=base.dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except FOREIGN_ERRORS as error:
        raise ModelError(f"checkpoint: {folder}: cannot be loaded: {first_line(error)}") from error
    own = dict(base.model.named_parameters())
    read = dict(model.named_parameters())
    wrong = {
        *report["missing_keys"],
        *(key for key, *_ in report["mismatched_keys"]),
        *(own.keys() ^ read.keys()),
    }
    wrong |= {name for name in own.keys() & read.keys() if own[name].shape != read[name].shape}
    if wrong:
        raise ModelError(
            f"checkpoint: {folder}: made for another base model than {base.name}: its {min(wrong)} differs"
        )
    for name, weight in own.items():
        weight.copy_(read[name])


class LoadedModel:
    """A fully fine-tuned model as a `Scorer` of one arm: the base with the weights of the folder."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        """Load the weights into the base.

        Raises:
            ModelError: the folder holds no model, or one of another shape.
        """
        self._base = base
        self._kept = loading.kept_weights(list(base.model.parameters()))
        load_weights(base, folder)
        self.experiment_ids = (folder.name,)

    @torch.no_grad()
    def close(self) -> None:
        """Give the base its own weights again."""
        for weight, own in zip(self._base.model.parameters(), self._kept, strict=True):
            weight.copy_(own)

    def score(self, batch: Batch) -> TokenScores:
        """Score a batch."""
        return scored(self._base, batch)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[0][prompt]`, up to and without the end-of-text token."""
        return [greedy_answers(self._base, prompts, copies=1, max_new_tokens=max_new_tokens)]
