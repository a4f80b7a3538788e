"""What a user may get wrong: exit code 2, one message that says what and where, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

#: Takes no connections, so that the hub is out of reach on every machine.
NO_HUB = "http://127.0.0.1:9"

TOP = "suite_name: s\nbase_model: model\ndataset_path: people.csv\nmax_steps: 2\n"
ARMS = "experiments:\n  - lora_rank: 2\n"

#: What is wrong -> the suite file, and what the message says, among other things.
SUITES = {
    "a misspelt key": (
        TOP + "lora_rnak: 4\n" + ARMS,
        ["s.yaml:5:1: lora_rnak:", "did you mean lora_rank?"],
    ),
    "a value out of range": (
        TOP + "experiments:\n  - lora_rank: 0\n",
        ["s.yaml:6:16: experiments[0].lora_rank:"],
    ),
    "everything at once": (
        TOP + "lora_rnak: 4\nlearning_rate: -1\nquantization: 3bit\n" + ARMS,
        ["s.yaml:5:1:", "s.yaml:6:16: learning_rate", "s.yaml:7:15: quantization", "4bit"],
    ),
    "a missing data file": (
        TOP.replace("people.csv", "peolpe.csv") + ARMS,
        ["s.yaml:3:15: dataset_path:", "did you mean people.csv?"],
    ),
    "a missing model folder": (
        TOP.replace("base_model: model", "base_model: ./modle") + ARMS,
        ["s.yaml:2:13: base_model:", "./modle"],
    ),
    "a base model that cannot be reached": (
        TOP.replace("base_model: model", "base_model: nobody/nothing") + ARMS,
        ["nobody/nothing: neither a folder here nor reachable", "hf download", "base_model: lab"],
    ),
    "names that collide": (
        TOP + "experiments:\n  - {name: one, lora_rank: 2}\n  - {name: One, lora_rank: 4}\n",
        ["s.yaml:7", "One"],
    ),
    "an empty data set": (TOP.replace("people.csv", "empty.csv") + ARMS, ["empty.csv: holds no rows"]),
    "an unknown format": (
        TOP.replace("people.csv", "odd.jsonl") + ARMS,
        ["odd.jsonl:", "colour", "shape"],
    ),
    "a file that is not YAML": ("suite_name: [s\n", ["s.yaml:"]),
    "a class that is not there": (
        TOP + "experiment_type: nothing.py:Mine\n" + ARMS,
        ["nothing.py"],
    ),
}

COMMANDS = {
    "no such suite file": ("lorastudy suite missing.yaml", ["missing.yaml"]),
    "no such verb": ("lorastudy siute s.yaml", ["siute"]),
    "no such executor": ("lorastudy suite s.yaml --executor cloud", ["cloud", "ray"]),
    "an address without Ray": ("lorastudy suite good.yaml --ray-address 10.0.0.1:6379", ["--executor ray"]),
    "a rank that is none": (
        "lorastudy run --lora-rank 0 --dataset people.csv --base-model model",
        ["--lora-rank"],
    ),
    "no data file": (
        "python scripts/run_single_experiment.py --lora-rank 4 --dataset nope.csv --base-model model",
        ["--dataset", "nope.csv"],
    ),
    "an empty file to prepare": (
        "python scripts/prepare_dataset.py --dataset empty.csv",
        ["empty.csv: holds no rows"],
    ),
    "an unknown format to prepare": ("lorastudy prepare --dataset odd.jsonl", ["colour", "shape"]),
    "an unknown ending": ("lorastudy prepare --dataset notes.doc", ["notes.doc"]),
    "a hub out of reach": (
        "lorastudy prepare --dataset alpaca",
        ["looking for tatsu-lab/alpaca on the Hugging Face hub", "lorastudy prepare --dataset FILE"],
    ),
    "no store to report from": ("lorastudy report", ["results/experiments.db"]),
    "no adapter": (
        "lorastudy evaluate --checkpoint output/nothing",
        ["output/nothing", "adapter_config.json"],
    ),
    "an adapter's base out of reach": (
        "lorastudy evaluate --checkpoint adapter --base-model nobody/nothing",
        ["nobody/nothing: neither a folder here nor reachable"],
    ),
}

#: Commands that run in a process of their own: the scripts, and one that only starts.
OF_THEIR_OWN = {
    command
    for command, _ in COMMANDS.values()
    if command.startswith("python ") or command == "lorastudy suite missing.yaml"
}


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("bad_input")
    folder.write("empty.csv", "prompt,completion\n")
    folder.write("odd.jsonl", '{"colour": "red", "shape": "round"}\n')
    folder.write("notes.doc", "text")
    folder.write("good.yaml", TOP + ARMS)
    return folder


def check(folder: Any, command: str, *, said: list[str], **environment: str) -> None:
    before = folder.files()
    run = folder.run if command in OF_THEIR_OWN or environment else folder.here
    done = run(command, expect=2, HF_HOME=str(folder.path / "no_cache"), **environment)
    for part in said:
        assert part in done.stderr
    assert folder.files() == before


@pytest.mark.parametrize("what", SUITES)
def test_a_bad_suite(folder: Any, what: str) -> None:
    text, said = SUITES[what]
    folder.write("s.yaml", text)
    check(folder, "lorastudy suite s.yaml", said=said)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_bad_command(folder: Any, what: str) -> None:
    command, said = COMMANDS[what]
    check(folder, command, said=said)


def test_what_needs_the_hub_fails_as_clearly_where_nobody_said_that_there_is_no_network(folder: Any) -> None:
    """And in seconds, since nothing is tried again; that is for the eye, not for an assertion."""
    text, said = SUITES["a base model that cannot be reached"]
    folder.write("s.yaml", text)
    check(folder, "lorastudy suite s.yaml", said=said, HF_HUB_OFFLINE="0", HF_ENDPOINT=NO_HUB)
    command, said = COMMANDS["a hub out of reach"]
    check(folder, command, said=said, HF_HUB_OFFLINE="0", HF_ENDPOINT=NO_HUB)


def test_an_adapter_of_another_base(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "some/wider-model", "r": 2, "target_modules": ["q_proj"]}'
    )
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_A.weight": np.zeros((2, 7)), f"{layer}.lora_B.weight": np.zeros((7, 2))}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    command = f"lorastudy evaluate --checkpoint {tmp_path} --base-model model --benchmark-only"
    check(folder, command, said=["made for another base model (some/wider-model)"])
