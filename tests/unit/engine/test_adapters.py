"""Adapters that do not belong where they are put."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from lorastudy.engine.adapters import CONFIG_FILE, WEIGHTS_FILE, check_fits, save_adapter, save_config
from lorastudy.engine.arms import initial_lora_A
from lorastudy.engine.batch import assemble
from lorastudy.engine.peft_model import LoadedAdapter, lora_config
from lorastudy.errors import ModelError
from lorastudy.protocol.files import is_disk_fault

pytestmark = pytest.mark.usefixtures("one_thread")


def save_random(folder, *, base, target_modules="qkvo"):
    arm = tiny.make_arm(tiny.targets(base, target_modules))
    weights = {}
    for name in arm.module_names:
        layer = base.linear_layers[name]
        a = initial_lora_A(arm, module_name=name, in_features=layer.in_features)
        weights[name] = (a, torch.full((layer.out_features, arm.r), 0.05))
    save_adapter(arm, weights, base=base, folder=folder)
    return folder


@pytest.fixture
def base():
    return tiny.make_base()


@pytest.fixture
def adapter(base, tmp_path):
    return save_random(tmp_path / "adapter", base=base)


def test_a_loaded_adapter_is_scored_and_asked(base, adapter):
    batch = assemble(tiny.make_rows(3), device=tiny.CPU)
    plain = tiny.make_base()
    with tiny.opened(tiny.PackedEngine(plain, [tiny.make_arm(tiny.targets(plain, "q"))])) as engine:
        without = engine.score(batch)
    loaded = LoadedAdapter(base, adapter)
    assert loaded.experiment_ids == ("adapter",)
    scores = loaded.score(batch)
    assert scores.nll_KM.shape == without.nll_KM.shape
    assert not torch.allclose(scores.nll_KM, without.nll_KM, atol=1e-3)
    ((first, second),) = loaded.generate([(3, 4), (5, 6, 7)], max_new_tokens=2)
    assert (len(first), len(second)) == (2, 2)


def test_a_folder_that_is_no_adapter(base, tmp_path):
    with pytest.raises(ModelError, match=f"has no {CONFIG_FILE}; expected an adapter folder such as output/"):
        check_fits(base, tmp_path)


def test_an_adapter_with_pickled_weights_only(base, adapter):
    torch.save(load_file(adapter / WEIGHTS_FILE), adapter / "adapter_model.bin")
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=f"has adapter_model.bin and no {WEIGHTS_FILE}; reading a pickle"):
        check_fits(base, adapter)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_torn_file(base, adapter, file):
    (adapter / file).write_bytes((adapter / file).read_bytes()[:40])
    with pytest.raises(ModelError, match="adapter: damaged: "):
        check_fits(base, adapter)


def test_an_adapter_of_a_wider_base(adapter):
    with pytest.raises(
        ModelError, match=r"made for another base model \(llama\): its model.layers.0.* does not fit"
    ):
        check_fits(tiny.make_base(hidden_size=64), adapter)


@pytest.mark.parametrize("other", ["gpt2", "phi"])
def test_an_adapter_of_another_architecture(adapter, other):
    with pytest.raises(ModelError, match="made for another base model"):
        check_fits(tiny.make_base(other), adapter)


def test_an_adapter_of_a_shallower_base(base, adapter):
    """PEFT alone would give the layers it lacks random weights."""
    weights = load_file(adapter / WEIGHTS_FILE)
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, adapter / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"it has no weights for model.layers.1.self_attn.k_proj"):
        check_fits(base, adapter)


def test_an_adapter_of_another_method(base, adapter):
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(config | {"peft_type": "ADALORA"}))
    with pytest.raises(ModelError, match="a ADALORA adapter; these are supported: LORA, IA3"):
        check_fits(base, adapter)


@pytest.mark.parametrize("options", [{}, {"layers_to_transform": [1]}, {"target_modules": r".*q_proj"}])
def test_adapters_that_peft_itself_saved_fit(base, tmp_path, options):
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **({"target_modules": ["q_proj", "v_proj"]} | options))
    model = get_peft_model(tiny.make_model("llama"), config)
    model.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    check_fits(base, tmp_path / "peft")


def test_single_layers_are_saved_under_names_that_select_them_alone(base, tmp_path):
    names = ("model.layers.1.self_attn.q_proj",)
    folder = save_random(tmp_path / "one", base=base, target_modules=names)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["target_modules"] == list(names)
    check_fits(base, folder)
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_failure_of_the_adapter(base, tmp_path, monkeypatch):
    (tmp_path / WEIGHTS_FILE).symlink_to("/dev/full")
    monkeypatch.setattr(Path, "unlink", lambda path, **_: None)  # else the link would go, and the file fit
    arm = tiny.make_arm(tiny.targets(base, "qv"))
    weights = {name: (torch.zeros(4, 48), torch.zeros(48, 4)) for name in arm.module_names}
    with pytest.raises(OSError, match="No space left") as raised:
        save_adapter(arm, weights, base=base, folder=tmp_path)
    assert is_disk_fault(raised.value)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("target_modules", ["qkvo", "all"])
def test_peft_reads_the_configuration_as_its_own(tmp_path, architecture, target_modules):
    base = tiny.make_base(architecture)
    arm = tiny.make_arm(
        tiny.targets(base, target_modules), r=3, lora_alpha=4.5, use_rslora=True, lora_dropout=0.25
    )
    save_config(arm, base=base, folder=tmp_path)
    own = lora_config(arm, base=base)
    own.base_model_name_or_path, own.inference_mode = architecture, True
    assert LoraConfig.from_pretrained(str(tmp_path)).to_dict() == own.to_dict()


def test_the_configuration_is_written_alike_each_time(base, tmp_path):
    arm = tiny.make_arm(tiny.targets(base, "all")[::-1])
    save_config(arm, base=base, folder=tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
