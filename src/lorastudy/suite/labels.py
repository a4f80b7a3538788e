"""Labels: what an arm is called in a report, a plot and on a terminal.

A label says in what an arm differs from the other arms of its suite: `r=16`, `q,v`, `4-bit`, `r=16, lr 2e-4`. Names stay
for folders, ids, JSON and data frames. A suite and its results have the same settings, so an arm has the same label before
and after the run.

A new setting needs one line in `_WORDS`. Without it, its label is the key and the value: `warmup_ratio 0.1`.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.methods import LORAPLUS_RATIO
from lorastudy.suite.peft_types import peft_title
from lorastudy.suite.settings import LAYOUT_KEYS, SELECTION_KEYS, Settings, keys_without_effect

#: Highest first: what a lower precision is compared with.
PRECISIONS = ("fp32", "bf16", "fp16", "8bit", "4bit")
#: An arm that has none of the words of its method keys is plain LoRA.
PLAIN_METHOD = "LoRA"
_PRESETS = {
    "q": "q",
    "v": "v",
    "qv": "q,v",
    "qkvo": "q,k,v,o",
    "mlp": "MLP",
    "all": "all modules",
}
_METHODS = {
    "lora": PLAIN_METHOD,
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "loraplus": "LoRA+",
    "lorafa": "LoRA-FA",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "gaussian": "gaussian weights",
    "orthogonal": "orthogonal weights",
    "loftq": "LoftQ",
    "full": "full fine-tuning",
}
_OPTIMIZERS = {
    "adamw_torch": "AdamW",
    "adamw_8bit": "8-bit AdamW",
    "paged_adamw_8bit": "paged 8-bit AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
}
Word = Callable[[Any], str]


def _method(value: Any) -> str:
    return "" if value is None or isinstance(value, bool) else _METHODS.get(str(value), str(value))


def _loraplus(ratio: float) -> str:
    return "LoRA+" if ratio == LORAPLUS_RATIO else f"LoRA+ {_number(ratio)}x"


def _if_set(word: str) -> Word:
    """The word for a key that is on or has a value; nothing for a key that is off."""
    return lambda value: word.format(value) if value else ""


def _number(value: float) -> str:
    return f"{value:.4g}"


def _rate(value: float) -> str:
    """`2e-4`: three digits of a learning rate and its power of ten, which is left out where it is zero: `1.5`."""
    mantissa, _, power = f"{value:.2e}".partition("e")
    if int(power) == 0:
        return f"{float(mantissa):g}"
    return f"{float(mantissa):g}e{int(power)}"


def _modules(value: Any) -> str:
    if isinstance(value, str):
        return _PRESETS.get(value, value)
    return ",".join(str(name).removesuffix("_proj") for name in value)


def _layers(value: Sequence[int] | None) -> str:
    if value is None:
        return "all layers"
    is_range = len(value) > 1 and list(value) == list(range(value[0], value[-1] + 1))
    return f"layers {f'{value[0]}-{value[-1]}' if is_range else ','.join(map(str, value))}"


def _last_part(path: Any) -> str:
    text = "none" if path is None else str(path).rstrip("/").rpartition("/")[2].rpartition(":")[2]
    for suffix in (".json", ".jsonl", ".csv", ".parquet"):
        text = text.removesuffix(suffix)
    return text


#: Begins the words for weights that train beside an adapter. These words follow those of its method.
_WITH = "with "
_BIASES = {"all": "all biases", "lora_only": "biases"}
#: Keys that together make the method; their words come first and without a comma: `DoRA r=16`.
_METHOD_WORDS: Mapping[str, Word] = {
    "peft": peft_title,
    "method": _method,
    "use_dora": _if_set("DoRA"),
    "use_rslora": _if_set("rsLoRA"),
    "loraplus_lr_ratio": lambda value: "" if value is None else _loraplus(value),
    "init_lora_weights": _method,
    "bias": lambda value: "" if value == "none" else _WITH + _BIASES[value],
    "modules_to_save": lambda value: "" if value is None else _WITH + _modules(value),
    "trainable_token_indices": lambda value: "" if value is None else f"{_WITH}{len(value)} embeddings",
}
#: In the order of a label. An empty text says nothing.
_WORDS: Mapping[str, Word] = {
    "base_model": _last_part,
    "dataset_path": _last_part,
    "lora_rank": lambda value: f"r={value}",
    "rank_pattern": lambda value: ", ".join(f"r={rank} in {pattern}" for pattern, rank in value.items()),
    "alpha_pattern": lambda value: ", ".join(
        f"alpha {_number(alpha)} in {pattern}" for pattern, alpha in value.items()
    ),
    "lora_alpha": lambda value: f"alpha {value if isinstance(value, str) else _number(value)}",
    "target_modules": _modules,
    "layers_to_transform": _layers,
    "exclude_modules": lambda value: "nothing excluded" if value is None else f"without {_modules(value)}",
    "quantization": lambda value: str(value).replace("bit", "-bit"),
    "bnb_4bit_quant_type": str,
    "bnb_4bit_use_double_quant": lambda value: "double quantisation" if value else "single quantisation",
    "lora_dropout": lambda value: f"dropout {_number(value)}",
    "num_train_epochs": lambda value: "" if value is None else f"{_number(value)} epochs",
    "max_steps": lambda value: "" if value is None else f"{value} steps",
    "per_device_train_batch_size": lambda value: f"batch {value}",
    "max_seq_length": lambda value: f"{value} tokens",
    "train_on_inputs": lambda value: "loss on all tokens" if value else "loss on answers",
    "group_by_length": lambda value: "rows by length" if value else "rows in any order",
    "lr_scheduler_type": lambda value: str(value).replace("_", " "),
    "lr_scheduler_kwargs": lambda value: ", ".join(f"{key} {item}" for key, item in value.items()),
    "optim": lambda value: _OPTIMIZERS[value],
    "label_smoothing_factor": lambda value: f"label smoothing {_number(value)}",
    "neftune_noise_alpha": lambda value: "no NEFTune" if value is None else f"NEFTune alpha {_number(value)}",
    "engine": lambda value: f"{value} engine",
}
#: Follows all other keys, as a reader expects: `r=16, lr 2e-4`.
_RATE_KEY = "learning_rate"
_OF_4BIT = frozenset({"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})
#: Paths besides the base model and the training rows, and the layout of the work, tell no arms apart.
_NOT_SHOWN = LAYOUT_KEYS - {"base_model", "dataset_path"}


def arm_labels(
    arms: Mapping[str, Settings], *, tried: Collection[str] = (), is_searched: bool = False
) -> dict[str, str]:
    """The label of each arm, by its name; no two are equal.

    With `is_searched`, a search finds the learning rates, so they tell no arms apart; the arms in `tried`, which only
    choose rates, have theirs. Arms that differ in nothing that a label shows keep their names.
    """
    keys = _differing(arms)
    rates = _RATE_KEY in keys and not is_searched
    labels = {
        name: _label(settings, keys, with_rate=rates or name in tried) for name, settings in arms.items()
    }
    if is_searched:
        for name in _ambiguous(labels):
            labels[name] = _label(arms[name], keys, with_rate=True)
    ambiguous = _ambiguous(labels)
    labels |= {name: name for name in ambiguous}
    return {name: name for name in arms} if _ambiguous(labels) else labels


def experiment_labels(experiments: Sequence[Experiment], *, tuning: Collection[str] = ()) -> dict[str, str]:
    """`r=16, seed 0` for each experiment, by its id. `tuning` are the ids of those that choose learning rates."""
    labels = labels_of(experiments, tuning=tuning)
    return {each.id: with_seed(labels[each.arm], each.seed) for each in experiments}


def labels_of(experiments: Sequence[Experiment], *, tuning: Collection[str] = ()) -> dict[str, str]:
    """The label of each arm of these experiments, by its name."""
    reporting = {each.arm for each in experiments if each.id not in tuning}
    arms = {each.arm: each.settings for each in experiments}
    return arm_labels(arms, tried=set(arms) - reporting, is_searched=bool(tuning))


def with_seed(label: str, seed: int) -> str:
    """The label of an arm's run with one seed."""
    return f"{label}, seed {seed}"


def without_rate(label: str, learning_rate: float) -> str:
    """The label without its learning rate: that of the configuration."""
    return label.removesuffix(f", lr {_rate(learning_rate)}")


def in_order_of_values(arms: Mapping[str, Settings]) -> list[str]:
    """The names by the values of what differs: numbers rise, precisions fall, other values come as they first appear.

    The arms of a method stand together, the methods as they first appear. Full fine-tuning comes after the adapters.
    """
    keys = [*_ordered(_differing(arms)), _RATE_KEY]
    methods = list(dict.fromkeys(map(_method_values, arms.values())))
    seen: dict[str, list[str]] = {key: [] for key in keys}
    for settings in arms.values():
        for key in keys:
            text = canonical_json(_value(settings, key))
            seen[key] += [] if text in seen[key] else [text]

    def place(name: str) -> list[float]:
        settings = arms[name]
        of_method = math.inf if settings.arm_method.is_full else methods.index(_method_values(settings))
        return [of_method, *(_place(_value(settings, key), key, seen=seen[key]) for key in keys)]

    return sorted(arms, key=place)


def _method_values(settings: Settings) -> tuple[str, ...]:
    return tuple(canonical_json(_value(settings, key)) for key in _METHOD_WORDS)


def _place(value: Any, key: str, *, seen: Sequence[str]) -> float:
    if key == "quantization":
        return PRECISIONS.index(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float(seen.index(canonical_json(value)))


def _differing(arms: Mapping[str, Settings]) -> list[str]:
    """The keys that tell arms apart. Alpha is left out where it is the same for all, or a fixed multiple of the rank.

    Full fine-tuning has none of an adapter's keys, so only the other arms count for these.
    """
    settings = list(arms.values())
    idle = SELECTION_KEYS.intersection(*(keys_without_effect(each.model_dump()) for each in settings))
    keys = [
        key
        for key in Settings.model_fields
        if key not in _NOT_SHOWN | idle and len(_values(settings, key)) > 1
    ]
    others = [key for key in keys if key not in {"lora_alpha", _RATE_KEY}]
    adapters = [each for each in settings if each.arm_method.has_lora]
    if others and "lora_alpha" in keys and _has_plain_alpha(adapters):
        keys.remove("lora_alpha")
    return keys


def _values(settings: Sequence[Settings], key: str) -> set[str]:
    """The values of a key, without those of arms in which it has no effect. A method's keys count in every arm."""
    return {
        canonical_json(_value(each, key))
        for each in settings
        if key in _METHOD_WORDS or not _is_idle(key, settings=each)
    }


def _is_idle(key: str, *, settings: Settings) -> bool:
    return key in settings.arm_method.idle_keys


def _has_plain_alpha(settings: Sequence[Settings]) -> bool:
    """Whether all arms have one alpha, or one scale. Where rsLoRA is compared with LoRA, one alpha / r will do as well.

    Otherwise labels without alpha would hide that the scale changes together with the rank.
    """
    alphas = {each.lora_alpha_value for each in settings}
    scales = {round(each.lora_scaling, 9) for each in settings}
    factors = {each.lora_alpha_value / each.lora_rank for each in settings}
    both_kinds = len({each.use_rslora for each in settings}) > 1
    return len(alphas) == 1 or len(scales) == 1 or (both_kinds and len(factors) == 1)


def _value(settings: Settings, key: str) -> Any:
    value = getattr(settings, key)
    return list(value) if isinstance(value, tuple) else value


def _label(settings: Settings, keys: Sequence[str], *, with_rate: bool) -> str:
    parts = [_word(settings, key) for key in _ordered(keys) if not _is_idle(key, settings=settings)]
    # The linter's sentences have labels in them and mark code by backticks.
    text = ", ".join(part for part in parts if part).replace("`", "'")
    if any(key in _METHOD_WORDS for key in keys):
        words = [_METHOD_WORDS[key](getattr(settings, key)) for key in keys if key in _METHOD_WORDS]
        own = [word for word in words if word and not word.startswith(_WITH)] or [PLAIN_METHOD]
        beside = [word for word in words if word.startswith(_WITH)]
        text = " ".join([*dict.fromkeys(own), *beside, text]).rstrip()
    if not with_rate:
        return text
    rate = f"lr {_rate(settings.learning_rate)}"
    return f"{text}, {rate}" if text else rate


def _ordered(keys: Sequence[str]) -> list[str]:
    """The keys in the order of a label, without those of the method and the rate."""
    known = [key for key in _WORDS if key in keys]
    return known + [
        key for key in keys if key not in _WORDS and key not in _METHOD_WORDS and key != _RATE_KEY
    ]


def _word(settings: Settings, key: str) -> str:
    if key in _OF_4BIT and settings.quantization != "4bit":
        return ""
    value = getattr(settings, key)
    if key in _WORDS:
        return _WORDS[key](value)
    if isinstance(value, bool) or value is None:
        value = {True: "on", False: "off", None: "none"}[value]
    return f"{key} {_number(value) if isinstance(value, float) else value}"


def _ambiguous(labels: Mapping[str, str]) -> list[str]:
    """The arms whose label is empty or that of another arm too."""
    uses = Counter(labels.values())
    return [name for name, label in labels.items() if not label or uses[label] > 1]
