"""The methods that an arm can train with: their short names, the keys behind these, and which of them only PEFT trains.

`method: dora` is short for `use_dora: true`. `written_out` puts the keys in place of the short name, so both spellings are
the same experiment. A method without a key of PEFT's own, such as LoRA-FA, keeps its short name.

`method: full` is full fine-tuning: no adapter, all weights of the base train. It has none of an adapter's keys.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from lorastudy.suite.peft_types import PEFT_TYPES, PeftType, peft_title
from lorastudy.suite.wording import as_written

Method = Literal["lora", "rslora", "dora", "loraplus", "lorafa", "pissa", "olora", "full"]

InitialWeights = Literal["gaussian", "orthogonal", "pissa", "olora", "loftq"]

#: The initialisation that makes up for quantisation.
LOFTQ: Literal["loftq"] = "loftq"

#: Initialisations of PEFT that no arm can have, with the reason.
REFUSED_INITIAL_WEIGHTS: Mapping[str, str] = {
    "eva": "eva looks at what training rows make of each layer's inputs, and an arm here begins before any row is read",
    "corda": "corda needs the covariance of each layer's inputs, which PEFT's preprocess_corda gathers in a pass before training",
}

#: The method that trains the base's own weights.
FULL: Literal["full"] = "full"

#: The ratio of `method: loraplus` if the file gives none: that of the paper (arXiv 2402.12354) and of PEFT's guide.
LORAPLUS_RATIO = 16.0

#: PEFT's `create_lorafa_optimizer` has no argument for AdamW's constants and takes these.
LORAFA_CONSTANTS: Mapping[str, float] = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-6}

#: The keys that each short name stands for. None is a method that has no key.
_STANDS_FOR: Mapping[str, tuple[str, Any] | None] = {
    "lora": None,
    "rslora": ("use_rslora", True),
    "dora": ("use_dora", True),
    "loraplus": ("loraplus_lr_ratio", LORAPLUS_RATIO),
    "lorafa": None,
    "pissa": ("init_lora_weights", "pissa"),
    "olora": ("init_lora_weights", "olora"),
    FULL: None,
}

#: Methods that stay under their short name, since no other key says them.
WITHOUT_KEY = frozenset({"lorafa", FULL})

#: The keys that make a method, and their values in plain LoRA.
METHOD_KEYS: Mapping[str, Any] = {
    "method": None,
    "use_dora": False,
    "loraplus_lr_ratio": None,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "peft": {},
}

#: The keys that train weights of the base beside the adapter.
BESIDE_KEYS = ("bias", "modules_to_save", "trainable_token_indices")

#: The keys of an adapter: its size, its place and its method. Full fine-tuning has none of them.
ADAPTER_KEYS = (
    "lora_rank", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "layers_to_transform",
    "exclude_modules", *(key for key in METHOD_KEYS if key != "method"),
)  # fmt: skip

#: The keys of an adapter that only LoRA has, and none of PEFT's other adapters.
LORA_KEYS = (
    "method", "lora_rank", "lora_alpha", "use_rslora", "lora_dropout",
    *(key for key in METHOD_KEYS if key not in {"method", "modules_to_save", "peft"}),
)  # fmt: skip

Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]

#: Optimizers of bitsandbytes. It has them for GPUs only.
ON_GPU_ONLY = frozenset({"adamw_8bit", "paged_adamw_8bit"})


def optimizer_problem(optim: str) -> str:
    """What to say where an optimizer of `ON_GPU_ONLY` meets a device without its kernels."""
    return f"optim: {optim} runs on NVIDIA GPUs alone, since bitsandbytes has no kernels for others; set optim: adamw_torch"


#: The keys for how an arm trains, whatever its method, that the packed engine has at these values alone.
TRAINING_KEYS: Mapping[str, Any] = {"optim": "adamw_torch", "neftune_noise_alpha": None}

#: The keys that a short name may stand for, at their values in plain LoRA.
SAID_BY_METHOD: Mapping[str, Any] = {
    "use_rslora": False,
    **{key: METHOD_KEYS[key] for key in ("use_dora", "loraplus_lr_ratio", "init_lora_weights")},
}


def written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the keys of the method in place of its short name; for full fine-tuning without keys of an adapter.

    And for PEFT's other adapters without those of LoRA. So a suite may give its adapters' rank at the top, and its full
    fine-tuning is the same experiment at any rank.
    """
    method = values.get("method")
    if method == FULL:
        return {key: value for key, value in values.items() if key not in ADAPTER_KEYS}
    if values.get("peft"):
        return {key: value for key, value in values.items() if key not in LORA_KEYS}
    stands_for = _STANDS_FOR.get(method) if method is not None else None
    rest = dict(values)
    if method is not None and method not in WITHOUT_KEY:
        rest["method"] = None
    if stands_for is not None and rest.get(stands_for[0]) in (None, METHOD_KEYS.get(stands_for[0], False)):
        rest[stands_for[0]] = stands_for[1]
    return rest


def without_plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the keys of methods that say plain LoRA; for full fine-tuning without those of an adapter."""
    kept = written_out(settings) if settings.get("method") == FULL else settings
    return {key: value for key, value in kept.items() if key not in METHOD_KEYS or value != METHOD_KEYS[key]}


def method_problem(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why an arm cannot train as these values say: the key to change, and the cause with the fix. None if it can.

    `values` are those that the file gives, before `written_out`. An absent key has its default.
    """
    return next(_problems(values), None)


def _problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    method = values.get("method")
    if method == FULL:
        yield from _problems_of_full(values)
        return
    if values.get("peft"):
        yield from _problems_of_peft_type(values)
        return
    for key in _refused_beside(method, values):
        yield "method", f"{method} and {key}: {as_written(values[key])} contradict each other; remove one"
    arm = ArmMethod.from_values({**METHOD_KEYS, **written_out(values)})
    yield from _optimizer_problems(arm, values)
    quantization = values.get("quantization")
    if arm.changes_base:
        yield from _problems_of_changed_base(arm, values)
    if arm.use_dora and quantization == "8bit":
        yield (
            "use_dora" if "use_dora" in values else "method",
            (
                "DoRA needs the base's weights as numbers, and PEFT spoils layers of 8 bits when it reads them on a CPU; set "
                "quantization: 4bit or bf16"
            ),
        )
    if arm.init_lora_weights == LOFTQ:
        yield from _problems_of_loftq(arm, quantization=quantization)
    yield from _problems_beside(arm, quantization=quantization)
    if arm.init_lora_weights == "orthogonal":
        yield from _problems_of_orthogonal(arm, rank=values.get("lora_rank", 0))
    if values.get("engine") == "packed" and arm.only_in_reference is not None:
        yield "engine", f"packed does not train this arm: {arm.only_in_reference}; set engine: auto"


def _problems_of_changed_base(arm: "ArmMethod", values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What prevents an adapter that starts from a part of the frozen weights."""
    init, quantization = (
        "init_lora_weights" if "init_lora_weights" in values else "method",
        values.get("quantization"),
    )
    if quantization in {"4bit", "8bit"}:
        yield (
            init,
            (
                f"{arm.title} takes a part out of the frozen weights, and these are quantised (quantization: {quantization}); "
                "set quantization: bf16, or another initialisation"
            ),
        )
    if arm.use_dora:
        yield (
            init,
            (
                "an adapter that starts from the frozen weights is saved as plain LoRA, and DoRA's norms cannot be; remove one"
            ),
        )
    if values.get("use_rslora") and (arm.rank_pattern or arm.alpha_pattern):
        yield (
            init,
            (
                "with use_rslora and patterns PEFT cannot turn such an adapter into plain LoRA; remove use_rslora or the patterns"
            ),
        )


def _problems_of_orthogonal(arm: "ArmMethod", *, rank: int) -> Iterator[tuple[str, str]]:
    key = "init_lora_weights"
    odd = next((rank for _, rank in arm.rank_pattern if rank % 2), None)
    if odd is not None:
        yield key, f"orthogonal weights need an even rank, and rank_pattern has {odd}; make it even"
    if rank % 2:
        yield key, f"orthogonal weights need an even rank, and lora_rank is {rank}; make it even"


def _problems_of_loftq(arm: "ArmMethod", *, quantization: object) -> Iterator[tuple[str, str]]:
    if quantization != "4bit":
        yield (
            "init_lora_weights",
            (
                "loftq makes up for what quantisation took from the weights, and here nothing does; set quantization: 4bit, or "
                "another initialisation"
            ),
        )
    if arm.use_dora:
        yield "init_lora_weights", "DoRA's norms would be those of another start than loftq's; remove one"


def _problems_beside(arm: "ArmMethod", *, quantization: object) -> Iterator[tuple[str, str]]:
    """What prevents the training of weights of the base beside the adapter."""
    for key in BESIDE_KEYS:
        if getattr(arm, key) == getattr(PLAIN, key):
            continue
        if arm.changes_base:
            yield (
                key,
                f"an adapter that starts from the frozen weights ({arm.init_lora_weights}) is saved without it; remove one",
            )
        if quantization == "fp16" and key != "trainable_token_indices":
            yield (
                key,
                (
                    "trains weights of the base, and weights in fp16 cannot train under a loss scale; set quantization: bf16 or fp32"
                ),
            )


def _problems_of_full(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values.get("quantization") in {"4bit", "8bit"}:
        yield (
            "quantization",
            (
                f"full fine-tuning trains the base's own weights, and {values['quantization']} weights cannot train; set "
                "quantization: bf16 or fp32, or train an adapter"
            ),
        )
    if values.get("engine") == "packed":
        yield "engine", f"packed does not train this arm: {_FULL_ALONE}; set engine: auto"
    yield from _optimizer_problems(ArmMethod.from_values({**METHOD_KEYS, **values}), values)


def _problems_of_peft_type(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    arm = ArmMethod.from_values({**METHOD_KEYS, **written_out(values)})
    kind, quantization = arm.peft_type, values.get("quantization")
    assert kind is not None
    yield from _optimizer_problems(arm, values)
    yield from _problems_beside(arm, quantization=quantization)
    if quantization in {"4bit", "8bit"} and not kind.has_quantised_layers:
        yield (
            "peft",
            f"PEFT has no {kind.title} for quantised layers (quantization: {quantization}); set quantization: bf16",
        )
    if values.get("engine") == "packed":
        yield "engine", f"packed does not train this arm: {arm.only_in_reference}; set engine: auto"


def _optimizer_problems(arm: "ArmMethod", values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if arm.is_lorafa and arm.optim != TRAINING_KEYS["optim"]:
        yield "optim", f"{arm.optim} contradicts method: lorafa, which is an optimizer of its own; remove one"
    if arm.optim == "sgd" and values.get("learning_rate") == "auto":
        yield (
            "learning_rate",
            "auto begins at rates known for AdamW, and those of sgd lie elsewhere; give a list of rates",
        )


#: The keys that `method_problem` reads.
JUDGED_KEYS = (
    *METHOD_KEYS,
    *TRAINING_KEYS,
    "use_rslora",
    "lora_rank",
    "quantization",
    "engine",
    "learning_rate",
)


def _refused_beside(method: str | None, values: Mapping[str, Any]) -> list[str]:
    """The given keys that say something else than the method's short name."""
    has_ratio = values.get("loraplus_lr_ratio") is not None
    initial = values.get("init_lora_weights", True)
    is_said = {
        "use_dora": method in {"lora", "lorafa"} and values.get("use_dora") is True,
        "loraplus_lr_ratio": method in {"lora", "lorafa"} and has_ratio,
        "init_lora_weights": {
            "lora": changes_base(initial),
            "pissa": "init_lora_weights" in values and not str(initial).startswith("pissa"),
            "olora": "init_lora_weights" in values and initial != "olora",
        }.get(method or "", False),
    }
    denied = {"rslora": "use_rslora", "dora": "use_dora"}.get(method or "")
    if denied is not None and values.get(denied) is False:
        is_said[denied] = True
    return [key for key, is_refused in is_said.items() if is_refused]


def changes_base(init_lora_weights: object) -> bool:
    """Whether an initialisation takes a part out of the frozen weights and trains it (PiSSA, OLoRA)."""
    return str(init_lora_weights).startswith(("pissa", "olora"))


@dataclass(frozen=True, kw_only=True)
class ArmMethod:
    """The method of one arm, as the keys that act. The defaults are plain LoRA."""

    use_dora: bool = False
    loraplus_lr_ratio: float | None = None
    is_lorafa: bool = False
    is_full: bool = False
    """Full fine-tuning: there is no adapter, and all weights of the base train."""
    init_lora_weights: bool | str = True
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Module names or regular expressions, as PEFT matches them, each with the rank of its layers."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    bias: str = "none"
    """Which of the base's biases train: `none`, `all`, or `lora_only`, those of the adapted layers."""
    modules_to_save: tuple[str, ...] = ()
    """Modules of the base of which the arm trains a copy and saves it."""
    trainable_token_indices: tuple[int, ...] = ()
    """Token ids whose embeddings train."""
    peft: tuple[tuple[str, Any], ...] = ()
    """The configuration of another of PEFT's adapters (`peft_types.canonical`), of which `peft_type` is one key."""
    optim: str = "adamw_torch"
    neftune_noise_alpha: float | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """The method of settings, given by key and written out."""
        return cls(
            use_dora=values["use_dora"],
            loraplus_lr_ratio=values["loraplus_lr_ratio"],
            is_lorafa=values["method"] == "lorafa",
            is_full=values["method"] == FULL,
            init_lora_weights=values["init_lora_weights"],
            rank_pattern=tuple(values["rank_pattern"].items()),
            alpha_pattern=tuple(values["alpha_pattern"].items()),
            bias=values["bias"],
            modules_to_save=tuple(values["modules_to_save"] or ()),
            trainable_token_indices=tuple(values["trainable_token_indices"] or ()),
            peft=tuple(
                (key, tuple(own) if isinstance(own, list) else own) for key, own in values["peft"].items()
            ),
            **{key: values.get(key, plain) for key, plain in TRAINING_KEYS.items()},
        )

    @property
    def peft_type(self) -> PeftType | None:
        """The kind of adapter, if it is another of PEFT's than LoRA."""
        return PEFT_TYPES[dict(self.peft)["peft_type"]] if self.peft else None

    @property
    def has_lora(self) -> bool:
        """Whether there is a LoRA adapter, with a rank and an alpha."""
        return not (self.is_full or self.peft)

    @property
    def idle_keys(self) -> frozenset[str]:
        """The keys of an adapter that have no effect on this method."""
        return frozenset(ADAPTER_KEYS if self.is_full else LORA_KEYS if self.peft else ())

    def rank_of(self, name: str, *, r: int) -> int:
        """The rank of a layer; `r` is that of layers that no pattern matches."""
        return next((rank for pattern, rank in self.rank_pattern if is_matched(name, pattern=pattern)), r)

    @property
    def changes_base(self) -> bool:
        """Whether the arm starts from a part of the frozen weights, which its own base then lacks."""
        return changes_base(self.init_lora_weights)

    @property
    def saved_ranks(self) -> int:
        """How many times the trained rank the saved adapter has: twice if PEFT subtracts the initial one."""
        return 2 if self.changes_base else 1

    @property
    def is_refused_on_experts(self) -> bool:
        """Whether PEFT does not have the method on weights of experts. It has LoRA+, which is a matter of the optimizer."""
        has_patterns = bool(self.rank_pattern or self.alpha_pattern)
        changes_weights = self.use_dora or self.is_lorafa or self.init_lora_weights is not True
        return changes_weights or has_patterns or self.is_counted

    @property
    def is_counted(self) -> bool:
        """Whether PEFT counts the arm's parameters on the model: no formula here gives their number.

        So for PEFT's other adapters than LoRA, and where weights of the base train beside the adapter.
        """
        return bool(self.peft) or any(getattr(self, key) != getattr(PLAIN, key) for key in BESIDE_KEYS)

    @property
    def title(self) -> str:
        """`LoRA`, `DoRA`, `LoRA+ (ratio 16)`, `DoRA, PiSSA`: the method in the field's words. rsLoRA is a scale, not told."""
        parts = [
            "DoRA" if self.use_dora else "",
            "" if self.loraplus_lr_ratio is None else f"LoRA+ (ratio {self.loraplus_lr_ratio:g})",
            "LoRA-FA" if self.is_lorafa else "",
            _INITS.get(str(self.init_lora_weights), str(self.init_lora_weights))
            if self.init_lora_weights is not True
            else "",
        ]
        training = [
            _OPTIMIZERS.get(self.optim, ""),
            "" if self.neftune_noise_alpha is None else f"NEFTune (alpha {self.neftune_noise_alpha:g})",
        ]
        patterns = [key for key in ("rank_pattern", "alpha_pattern") if getattr(self, key)]
        name = "full fine-tuning" if self.is_full else ", ".join(part for part in parts if part) or "LoRA"
        name = peft_title(dict(self.peft)) or name
        name = ", ".join([name, *(part for part in training if part)])
        added = [*patterns, *self._words_beside()]
        return f"{name} with {' and '.join(added)}" if added else name

    def _words_beside(self) -> Iterator[str]:
        """The weights of the base that train beside the adapter."""
        if self.bias != "none":
            yield "trained biases" if self.bias == "all" else "trained biases of its layers"
        if self.modules_to_save:
            yield f"trained {', '.join(self.modules_to_save)}"
        if self.trainable_token_indices:
            yield f"the embeddings of {len(self.trainable_token_indices)} tokens"

    @property
    def in_name(self) -> str:
        """The method as part of a name: `lora`, `dora`, `loraplus16`, `lorafa`, `dora-pissa`, `full`."""
        if self.is_full:
            return FULL
        if self.peft:
            options = [f"{key.replace('_', '-')}-{value}" for key, value in self.peft if key != "peft_type"]
            return "-".join([dict(self.peft)["peft_type"].lower(), *options, *self.modules_to_save])
        parts = [
            "dora" if self.use_dora else "",
            "" if self.loraplus_lr_ratio is None else f"loraplus{self.loraplus_lr_ratio:g}",
            "lorafa" if self.is_lorafa else "",
            str(self.init_lora_weights).replace("_", "-") if self.init_lora_weights is not True else "",
            *(f"r-{pattern}-{rank}" for pattern, rank in self.rank_pattern),
            *(f"alpha-{pattern}-{alpha:g}" for pattern, alpha in self.alpha_pattern),
            "" if self.bias == "none" else f"bias-{self.bias}",
            *self.modules_to_save,
            f"{len(self.trainable_token_indices)}-tokens" if self.trainable_token_indices else "",
        ]
        return "-".join(part for part in parts if part) or "lora"

    @property
    def only_in_reference(self) -> str | None:
        """Why only the reference engine trains this method; None if the packed engine does, too.

        The packed engine has LoRA+, which is plain LoRA at two learning rates.
        """
        if self.is_full:
            return _FULL_ALONE
        trained_plainly = replace(self, **TRAINING_KEYS)
        if replace(trained_plainly, loraplus_lr_ratio=None) != ArmMethod():
            return f"PEFT trains {self.title}"
        if self == trained_plainly:
            return None
        words = [
            f"{key}: {getattr(self, key)}"
            for key in TRAINING_KEYS
            if getattr(self, key) != TRAINING_KEYS[key]
        ]
        return f"the packed engine does not have {' and '.join(words)}"


def is_matched(name: str, *, pattern: str) -> bool:
    """Whether PEFT matches a layer's full name by a key of `rank_pattern` or `alpha_pattern`."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


#: Why the packed engine does not have full fine-tuning.
_FULL_ALONE = "full fine-tuning changes the weights that other arms share"

_OPTIMIZERS = {
    "adamw_8bit": "8-bit AdamW",
    "paged_adamw_8bit": "paged 8-bit AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
}

_INITS = {
    "gaussian": "gaussian weights",
    "orthogonal": "orthogonal weights",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    LOFTQ: "LoftQ",
}

PLAIN = ArmMethod()
