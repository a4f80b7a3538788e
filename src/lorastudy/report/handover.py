"""An arm in other programs: code that loads its adapter, and its configuration for TRL, axolotl and LLaMA-Factory.

The names of the adapted layers are those of the saved adapter, which are resolved for the model. What a program has no
key for is named in a comment, so that nothing is lost in silence. The warm-up is written in steps, which all of them take.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from lorastudy.suite.base_model import LAB_MODEL
from lorastudy.suite.methods import LOFTQ
from lorastudy.suite.settings import SELECTION_KEYS, Settings

Trainer = Literal["trl", "axolotl", "llamafactory"]

#: vLLM reserves room for one of these ranks.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

#: Settings that are the same argument of `transformers.TrainingArguments`.
_TRAINING_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon",
    "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optim",
)  # fmt: skip

#: The same, written only where they differ from the default.
_FURTHER_ARGUMENTS = ("lr_scheduler_kwargs", "label_smoothing_factor", "neftune_noise_alpha", "data_seed")

#: The name that transformers 5 has for `group_by_length`, with its value.
_GROUPING = {"train_sampling_strategy": "group_by_length"}


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """An arm as other programs need it."""

    settings: Settings
    folder: Path
    """Of the adapter, or of the model after full fine-tuning."""
    seed: int
    num_steps: int
    """Planned optimizer steps."""
    target_modules: tuple[str, ...]
    """The adapted layers, as PEFT names them. Empty after full fine-tuning."""
    target_parameters: tuple[str, ...] = ()
    """The adapted weights of routed experts, which PEFT names apart from layers."""
    base_model: str
    """A path or an id on the hub."""

    @property
    def is_full(self) -> bool:
        """Whether the folder holds a whole model."""
        return self.settings.arm_method.is_full

    @property
    def warmup_steps(self) -> int:
        """Steps during which the rate rises, as `transformers` rounds a share of all steps."""
        return self.settings.warmup_steps or math.ceil(self.num_steps * self.settings.warmup_ratio)


def targets_of(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PEFT's `target_modules` and `target_parameters` of a saved adapter; empty if the folder holds a whole model."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return (), ()
    values = json.loads(config.read_text(encoding="utf-8"))
    return tuple(values.get("target_modules") or ()), tuple(values.get("target_parameters") or ())


def base_model_of(settings: Settings, *, lab_folder: Path) -> str:
    """The base model as other programs find it: the lab's as a folder."""
    return str(lab_folder) if settings.base_model == LAB_MODEL else settings.base_model


def loading_code(arm: TrainedArm) -> Mapping[str, str]:
    """Code by its title: with PEFT, merged into the base, and with vLLM."""
    base, folder = repr(arm.base_model), repr(str(arm.folder))
    if arm.is_full:
        return {
            "with transformers": (
                "from transformers import AutoModelForCausalLM\n"
                f"model = AutoModelForCausalLM.from_pretrained({folder})"
            ),
            "with vLLM": f"from vllm import LLM\nllm = LLM({folder})",
        }
    with_peft = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {folder})"
    )
    code = {
        "with PEFT": with_peft,
        "merged into the base, after that": "model.merge_and_unload().save_pretrained('merged')",
    }
    if arm.settings.use_dora or arm.settings.rank_pattern or arm.settings.arm_method.is_counted:
        return code  # vLLM takes none of these; the merged model runs there
    saved_rank = arm.settings.lora_rank * arm.settings.arm_method.saved_ranks
    rank = next((rank for rank in _VLLM_RANKS if rank >= saved_rank), saved_rank)
    with_vllm = (
        "from vllm import LLM\nfrom vllm.lora.request import LoRARequest\n"
        f"llm = LLM({base}, enable_lora=True, max_lora_rank={rank})\n"
        f"llm.generate('...', lora_request=LoRARequest('adapter', 1, {folder}))"
    )
    return {**code, "with vLLM": with_vllm}


def training_configuration(arm: TrainedArm, trainer: Trainer) -> str:
    """The arm's training for another program: Python for TRL, YAML for axolotl and LLaMA-Factory."""
    written = {"trl": _for_trl, "axolotl": _for_axolotl, "llamafactory": _for_llamafactory}
    return written[trainer](arm)


def _for_trl(arm: TrainedArm) -> str:
    settings = arm.settings
    arguments: dict[str, Any] = {
        "output_dir": "output",
        **_training_arguments(arm),
        # TRL's default loss computes no logits, which the smoothing needs
        **({"loss_type": "nll"} if settings.label_smoothing_factor else {}),
        "completion_only_loss": not settings.train_on_inputs,
        "max_length": settings.max_seq_length,
        "bf16": settings.quantization not in {"fp16", "fp32"},
        "fp16": settings.quantization == "fp16",
    }
    renamed = [_checkpointing(on=arguments.pop("gradient_checkpointing"))]
    further = ["checkpointing"]
    if settings.group_by_length:
        renamed += [_grouping()]
        further += ["grouping"]
    kind, adapter = ("", {}) if arm.is_full else _peft_config(arm)
    is_quantised = settings.quantization in {"4bit", "8bit"}
    lines = [
        *_comments([*_lost(arm, ("loraplus_lr_ratio", "prompt_format")), *_rows_for_trl(settings)]),
        *([f"from peft import {kind}"] if kind else []),
        "from trl import SFTConfig",
        *(["from transformers import BitsAndBytesConfig"] if is_quantised else []),
        "",
        f"model = {arm.base_model!r}",
        *([_call("peft_config", kind, arguments=adapter)] if kind else []),
        *renamed,
        _call("args", "SFTConfig", arguments=arguments, further=further),
    ]
    if is_quantised:
        lines += [_call("quantization", "BitsAndBytesConfig", arguments=_bits_and_bytes(settings))]
    loading = [
        *(['"quantization_config": quantization'] if is_quantised else []),
        *(['"trust_remote_code": True'] if settings.trust_remote_code else []),
    ]
    if loading:
        lines += [f"args.model_init_kwargs = {{{', '.join(loading)}}}"]
    return _text(lines)


def _rows_for_trl(settings: Settings) -> list[str]:
    if settings.train_on_inputs:
        return [_rows(settings)]
    return [
        _rows(settings),
        "completion_only_loss is for rows with a prompt and a completion; for rows with messages, set assistant_only_loss=True",
    ]


def _peft_config(arm: TrainedArm) -> tuple[str, dict[str, Any]]:
    """PEFT's class of the arm's adapter, and its arguments without those at PEFT's defaults."""
    settings = arm.settings
    kind = settings.arm_method.peft_type
    if kind is None:
        return "LoraConfig", _lora_config(arm)
    beside = {"modules_to_save": list(settings.modules_to_save)} if settings.modules_to_save else {}
    own = {key: value for key, value in settings.peft.items() if key != "peft_type"}
    return kind.config, {
        "target_modules": list(arm.target_modules),
        **own,
        **beside,
        "task_type": "CAUSAL_LM",
    }


def _lora_config(arm: TrainedArm) -> dict[str, Any]:
    """The arguments of PEFT's `LoraConfig`, without those at PEFT's defaults."""
    settings = arm.settings
    changed = {
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "bias": "" if settings.bias == "none" else settings.bias,
        "target_parameters": list(arm.target_parameters),
        "modules_to_save": list(settings.modules_to_save or ()),
        "trainable_token_indices": list(settings.trainable_token_indices or ()),
    }
    init = settings.init_lora_weights
    return {
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha_value,
        "lora_dropout": settings.lora_dropout,
        "target_modules": list(arm.target_modules),
        **{key: value for key, value in changed.items() if value},
        **({} if init in {True, LOFTQ} else {"init_lora_weights": init}),
        "task_type": "CAUSAL_LM",
    }


def _bits_and_bytes(settings: Settings) -> dict[str, Any]:
    if settings.quantization == "8bit":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": settings.bnb_4bit_quant_type,
        "bnb_4bit_use_double_quant": settings.bnb_4bit_use_double_quant,
        "bnb_4bit_compute_dtype": "bfloat16",
    }


def _training_arguments(arm: TrainedArm) -> dict[str, Any]:
    settings = arm.settings
    length = (
        {"num_train_epochs": settings.num_train_epochs or 1.0}
        if settings.max_steps is None
        else {"max_steps": settings.max_steps}
    )
    return {
        **{key: getattr(settings, key) for key in _TRAINING_ARGUMENTS},
        "warmup_steps": arm.warmup_steps,
        **length,
        **_changed(settings, _FURTHER_ARGUMENTS),
        "seed": arm.seed,
    }


def _changed(settings: Settings, keys: Sequence[str]) -> dict[str, Any]:
    """Those of the settings that differ from their defaults."""
    values = {key: getattr(settings, key) for key in keys}
    return {key: value for key, value in values.items() if value != Settings.model_fields[key].default}


def _for_axolotl(arm: TrainedArm) -> str:
    settings = arm.settings
    values: dict[str, Any] = {"base_model": arm.base_model}
    if arm.settings.arm_method.has_lora:
        values |= {
            "adapter": "qlora" if settings.quantization == "4bit" else "lora",
            "load_in_4bit": settings.quantization == "4bit",
            "load_in_8bit": settings.quantization == "8bit",
            "lora_r": settings.lora_rank,
            "lora_alpha": settings.lora_alpha_value,
            "lora_dropout": settings.lora_dropout,
            "lora_target_modules": list(arm.target_modules),
            **({"lora_target_parameters": list(arm.target_parameters)} if arm.target_parameters else {}),
            **({"peft_use_rslora": True} if settings.use_rslora else {}),
            **({"peft_use_dora": True} if settings.use_dora else {}),
            **(
                {}
                if settings.init_lora_weights in {True, LOFTQ}
                else {"peft_init_lora_weights": settings.init_lora_weights}
            ),
            **({"loraplus_lr_ratio": settings.loraplus_lr_ratio} if settings.loraplus_lr_ratio else {}),
            **({"lora_modules_to_save": list(settings.modules_to_save)} if settings.modules_to_save else {}),
            **(
                {"peft_trainable_token_indices": list(settings.trainable_token_indices)}
                if settings.trainable_token_indices
                else {}
            ),
        }
    if settings.quantization == "4bit":
        values["bnb_config_kwargs"] = {
            key: getattr(settings, key) for key in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        }
    arguments = _training_arguments(arm)
    for key in _LOST_BY_AXOLOTL:
        arguments.pop(key, None)
    values |= {
        "datasets": [{"path": settings.dataset_path}],
        "sequence_len": settings.max_seq_length,
        "train_on_inputs": settings.train_on_inputs,
        **_changed(settings, ("group_by_length", "trust_remote_code")),
        "micro_batch_size": arguments.pop("per_device_train_batch_size"),
        "optimizer": arguments.pop("optim"),
        "lr_scheduler": arguments.pop("lr_scheduler_type"),
        **({"num_epochs": arguments.pop("num_train_epochs")} if "num_train_epochs" in arguments else {}),
        **arguments,
        "bf16": settings.quantization not in {"fp16", "fp32"},
        "fp16": settings.quantization == "fp16",
        "output_dir": "output",
    }
    comments = [
        "datasets: add the type of your rows, such as `type: alpaca` or `type: chat_template`",
        _rows(settings),
        *_lost(arm, (*_LOST, *_LOST_BY_AXOLOTL)),
        *_rounded_alpha(settings),
    ]
    return _yaml(values, comments=comments)


def _for_llamafactory(arm: TrainedArm) -> str:
    settings = arm.settings
    values: dict[str, Any] = {
        "model_name_or_path": arm.base_model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if arm.is_full else "lora",
    }
    if arm.settings.arm_method.has_lora:
        values |= {
            "lora_rank": settings.lora_rank,
            "lora_alpha": round(settings.lora_alpha_value),
            "lora_dropout": settings.lora_dropout,
            "lora_target": ",".join(arm.target_modules),
            **({"use_rslora": True} if settings.use_rslora else {}),
            **({"use_dora": True} if settings.use_dora else {}),
            **_pissa(settings),
            **({"loraplus_lr_ratio": settings.loraplus_lr_ratio} if settings.loraplus_lr_ratio else {}),
            **({"additional_target": ",".join(settings.modules_to_save)} if settings.modules_to_save else {}),
        }
    bits = {"4bit": 4, "8bit": 8}.get(settings.quantization)
    values |= {} if bits is None else {"quantization_bit": bits, "quantization_method": "bnb"}
    if bits == 4:
        values |= {
            "quantization_type": settings.bnb_4bit_quant_type,
            "double_quantization": settings.bnb_4bit_use_double_quant,
        }
    values |= {
        "dataset": Path(settings.dataset_path).stem,
        "cutoff_len": settings.max_seq_length,
        "train_on_prompt": settings.train_on_inputs,
        **_changed(settings, ("trust_remote_code",)),
        **_training_arguments(arm),
        **_stable_steps(arm),
        **(_GROUPING if settings.group_by_length else {}),
        "bf16": settings.quantization not in {"fp16", "fp32"},
        "fp16": settings.quantization == "fp16",
        "output_dir": "output",
    }
    comments = [
        "dataset: name your file in data/dataset_info.json, and give the template of your model (template)",
        _rows(settings),
        *_lost(arm, (*_LOST, "trainable_token_indices")),
        *_rounded_alpha(settings),
    ]
    if arm.target_parameters:
        comments.append(f"no key here for target_parameters: {_plain(arm.target_parameters)}")
    if settings.init_lora_weights not in {True, LOFTQ} and "pissa_init" not in values:
        comments.append(f"no key here for init_lora_weights: {settings.init_lora_weights}")
    if settings.group_by_length:
        comments.append("before transformers 5, train_sampling_strategy is `group_by_length: true`")
    return _yaml(values, comments=comments)


def _pissa(settings: Settings) -> dict[str, Any]:
    """LLaMA-Factory's keys for PiSSA, which takes the fast decomposition of 16 iterations unless `pissa_iter` is -1."""
    name, _, iterations = str(settings.init_lora_weights).partition("_niter_")
    return {"pissa_init": True, "pissa_iter": int(iterations or -1)} if name == "pissa" else {}


def _stable_steps(arm: TrainedArm) -> dict[str, Any]:
    """The stable steps of `warmup_stable_decay`, of which LLaMA-Factory by itself has a third, and transformers all that are left."""
    options = arm.settings.lr_scheduler_kwargs
    if arm.settings.lr_scheduler_type != "warmup_stable_decay" or "num_stable_steps" in options:
        return {}
    left = arm.num_steps - arm.warmup_steps - int(options["num_decay_steps"])
    return {"lr_scheduler_kwargs": {**options, "num_stable_steps": max(0, left)}}


def _rounded_alpha(settings: Settings) -> list[str]:
    """A comment where axolotl and LLaMA-Factory, whose alpha is a whole number, cannot have the arm's."""
    if not settings.arm_method.has_lora or float(settings.lora_alpha_value).is_integer():
        return []
    return [f"lora_alpha is a whole number here; the arm has {settings.lora_alpha_value:g}"]


def _rows(settings: Settings) -> str:
    """The training rows, with the keys that leave out some of the file's."""
    shares = () if settings.eval_dataset_path is not None else ("eval_fraction", "test_fraction")
    values = {key: getattr(settings, key) for key in (*shares, "max_train_samples")}
    left_out = [f"{key}: {value}" for key, value in values.items() if value is not None]
    but = f", but not on the rows that these keys leave out: {', '.join(left_out)}" if left_out else ""
    return f"the arm trained on {settings.dataset_path}{but}"


#: Keys that neither axolotl nor LLaMA-Factory has.
_LOST = ("rank_pattern", "alpha_pattern", "bias", "peft", "prompt_format")

#: Arguments of transformers that axolotl does not pass on.
_LOST_BY_AXOLOTL = ("label_smoothing_factor", "data_seed")


def _lost(arm: TrainedArm, keys: Sequence[str]) -> list[str]:
    """A comment for each setting that the program has no key for, and for those that need held-out rows."""
    settings = arm.settings
    lost = [f"no key here for {key}: {_plain(value)}" for key, value in _changed(settings, keys).items()]
    if settings.layers_to_transform is not None:
        layers = ", ".join(map(str, settings.layers_to_transform))
        lost.append(f"the layers are those that the names select (layers_to_transform: {layers})")
    if settings.method == "lorafa":
        lost.append("no key here for method: lorafa, which freezes lora_A")
    if settings.init_lora_weights == LOFTQ:
        lost.append("no key here for init_lora_weights: loftq on a base that is quantised already")
    if settings.selects:
        chosen = _changed(settings, sorted(SELECTION_KEYS))
        given = ", ".join(f"{key}: {_plain(value)}" for key, value in chosen.items())
        lost.append(
            f"validation rows chose the adapter or stopped the training; give some of your own, and set {given}"
        )
    return lost


def _plain(value: Any) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _checkpointing(*, on: bool) -> str:
    """A dict of the argument under the name that the installed TRL has for it.

    transformers 5.23 renamed it, and ignores the old name where the new one has a default.
    """
    return (
        'new, old = "activation_checkpointing", "gradient_checkpointing"\n'
        f"checkpointing = {{new if hasattr(SFTConfig, new) else old: {on}}}"
    )


def _grouping() -> str:
    """A dict of `group_by_length` under the name that the installed transformers has for it."""
    return (
        f"new, old = {_GROUPING!r}, {{'group_by_length': True}}\n"
        "grouping = new if hasattr(SFTConfig, 'train_sampling_strategy') else old"
    )


def _call(name: str, function: str, *, arguments: Mapping[str, Any], further: Sequence[str] = ()) -> str:
    """`name = function(...)` with an argument on each line, and the dicts that `further` names as the last ones."""
    lines = [f"    {key}={value!r}," for key, value in arguments.items()]
    lines += [f"    **{one}," for one in further]
    return "\n".join([f"{name} = {function}(", *lines, ")"])


def _yaml(values: Mapping[str, Any], *, comments: Sequence[str]) -> str:
    """YAML with JSON values, which YAML 1.1 and 1.2 read alike; `1e-05` is written as 0.00001, since 1.1 takes it for text."""
    lines = [f"{key}: {_yaml_value(value)}" for key, value in values.items()]
    return _text([*_comments(comments), *lines])


def _yaml_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)}: {_yaml_value(one)}' for key, one in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _comments(lines: Sequence[str]) -> list[str]:
    return [f"# {line}" for line in lines]


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
