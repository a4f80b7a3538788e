"""Model and adapter folders, and links, of somebody who means harm: each made in a folder of its own."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tiny
from lorastudy.engine.adapters import save_adapter
from lorastudy.engine.arms import initial_lora_A
from lorastudy.engine.loading import load_base
from lorastudy.engine.peft_model import load_adapter
from lorastudy.suite.settings import Settings

Spoil = Callable[[Path, Path], None]


class Program:
    """What unpickling it runs is told by the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def load_model(folder: Path) -> None:
    """As a worker does; code of the folder's own is off."""
    base = load_base(Settings(base_model=str(folder), quantization="fp32"), device=tiny.CPU)
    base.model(torch.tensor([[2, 3, 4]]))


def make_adapter(folder: Path) -> Path:
    """An adapter of the tiny model."""
    base = tiny.make_base()
    arm = tiny.make_arm(tiny.targets(base, "q"))
    weights = {}
    for name in arm.module_names:
        layer = base.linear_layers[name]
        a = initial_lora_A(arm, module_name=name, in_features=layer.in_features)
        weights[name] = (a, torch.zeros(layer.out_features, arm.r))
    save_adapter(arm, weights, base=base, folder=folder)
    return folder


def use_adapter(folder: Path) -> None:
    """As `lorastudy evaluate` does."""
    load_adapter(tiny.make_base(), folder)


def pickled(path: Path, canary: Path) -> None:
    """A pickle that runs a program."""
    with path.open("wb") as file:
        pickle.dump(Program(canary), file)


def changed(name: str, **values: Any) -> Spoil:
    """The JSON file with other values."""

    def spoil(folder: Path, canary: Path) -> None:
        file = folder / name
        there = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**there, **values}).replace("CANARY", str(canary)))

    return spoil


def with_code(name: str, **values: Any) -> Spoil:
    """The JSON file with other values, and a module that it names."""

    def spoil(folder: Path, canary: Path) -> None:
        changed(name, **values)(folder, canary)
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")

    return spoil


def all_of(*spoils: Spoil) -> Spoil:
    """One after another."""
    return lambda folder, canary: [spoil(folder, canary) for spoil in spoils] and None


def _without(name: str) -> Spoil:
    return lambda folder, canary: (folder / name).unlink()


def _pickles(*names: str) -> Spoil:
    return lambda folder, canary: [pickled(folder / name, canary) for name in names] and None


def _bytes(name: str, content: bytes) -> Spoil:
    return lambda folder, canary: (folder / name).write_bytes(content) and None


def _header(name: str, header: bytes, *, length: int | None = None) -> Spoil:
    size = len(header) if length is None else length
    return _bytes(name, size.to_bytes(8, "little") + header)


def _outside_index(folder: Path, canary: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model-1.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickle_index(folder: Path, canary: Path) -> None:
    pickled(folder / "pytorch_model.bin", canary)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


_AUTO = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
_TENSOR = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**60]}}
_BINS = (
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "model.pkl",
    "consolidated.00.pth",
)

#: What -> how the folder is spoilt, and whether it must be refused (else it may be used, without what it smuggles).
MODELS: dict[str, tuple[Spoil, bool]] = {
    "pickled weights alone": (all_of(_without("model.safetensors"), _pickles("pytorch_model.bin")), True),
    "pickles beside the weights": (_pickles(*_BINS), False),
    "a pickle under the name of safetensors": (_pickles("model.safetensors"), True),
    "an index that names a pickle": (_pickle_index, True),
    "an index that leads out": (_outside_index, True),
    "a header without end": (_header("model.safetensors", b"{}", length=2**60), True),
    "a header of ninety megabytes": (_header("model.safetensors", b"{" + b" " * 90_000_000), True),
    "a tensor larger than the file": (_header("model.safetensors", json.dumps(_TENSOR).encode()), True),
    "code for an unknown type": (with_code("config.json", auto_map=_AUTO, model_type="evil"), True),
    "code for a known type": (with_code("config.json", auto_map=_AUTO), False),
    "code for the tokenizer": (
        with_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil"), True,
    ),
    "a kernel to be fetched": (changed("config.json", _attn_implementation="evil/kernel"), True),
    "a kernel in an inner configuration": (changed("config.json", text_config={"attn_implementation": "evil/kernel"}), True),
    "an adapter that leads elsewhere": (
        changed("adapter_config.json", peft_type="LORA", base_model_name_or_path="../evil", auto_mapping={"parent_library": "evil"}), True,
    ),
    "a type that is an expression": (changed("config.json", dtype="__import__('os').system('touch CANARY')"), True),
    "an activation that is a function": (changed("config.json", hidden_act="os.system"), True),
    "a tokenizer's class that is a function": (changed("tokenizer_config.json", tokenizer_class="os.system"), False),
    "a hundred thousand layers": (changed("config.json", num_hidden_layers=100_000), True),
    "a vocabulary without end": (changed("config.json", vocab_size=10**12), True),
    "no heads": (changed("config.json", num_attention_heads=0), True),
    "a configuration that is deep": (_bytes("config.json", b"[" * 100_000), True),
    "a tokenizer that is deep": (_bytes("tokenizer.json", b"[" * 100_000), True),
    "a generation program": (
        all_of(lambda folder, canary: (folder / "custom_generate").mkdir(), with_code("custom_generate/config.json")), False,
    ),
}  # fmt: skip

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTERS: dict[str, tuple[Spoil, bool]] = {
    "a pickle alone": (all_of(_without(_WEIGHTS), _pickles("adapter_model.bin")), True),
    "a pickle beside the weights": (_pickles("adapter_model.bin", "training_args.bin"), False),
    "a pickle under the name of safetensors": (_pickles(_WEIGHTS), True),
    "a module to be imported": (
        with_code(_CONFIG, megatron_config={"x": 1}, megatron_core="evil"), True,
    ),
    "a class to be imported": (with_code(_CONFIG, auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}), False),
    "a base that leads elsewhere": (changed(_CONFIG, base_model_name_or_path="../../evil"), False),
    "a header without end": (_header(_WEIGHTS, b"{}", length=2**60), True),
    "a configuration that is a list": (_bytes(_CONFIG, b"[]"), True),
    "a configuration that is deep": (_bytes(_CONFIG, b"[" * 100_000), True),
    "an origin that is no origin": (_bytes("lorastudy.json", b'{"experiment_id": ["x"]}'), False),
    "another method": (changed(_CONFIG, peft_type="__import__('os')"), True),
}  # fmt: skip
