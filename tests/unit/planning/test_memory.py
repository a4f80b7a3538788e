"""Every term of the prediction against arithmetic that is shown."""

from dataclasses import replace

import pytest

from lorastudy.executors.process import CUDA_ENVIRONMENT
from lorastudy.planning.memory import (
    ArmSize,
    Device,
    LinearLayer,
    ModelShape,
    adapter_bytes,
    base_weight_bytes,
    gradient_bytes,
    num_trainable,
    optimizer_bytes,
    part_of,
    predict,
    quantisation_bytes,
    slack_bytes,
)
from lorastudy.protocol.jobs import Footprint, Precision

CPU, CUDA = Device(kind="cpu"), Device(kind="cuda")

#: Two linear layers, 64 x 32 and 32 x 96, an embedding of 10 x 64 and 8 more weights: 2048 + 3072 + 640 + 8.
SHAPE = ModelShape(
    model_type="llama",
    linear_layers=(
        LinearLayer(name="layers.0.q", role="q", in_features=64, out_features=32, is_quantisable=True),
        LinearLayer(name="layers.0.up", role="mlp", in_features=32, out_features=96, is_quantisable=True),
    ),
    num_parameters=5768, num_layer_parameters=5128, num_tensors=4, buffer_bytes=100, hidden_size=64, num_layers=1,
    num_attention_heads=2, num_key_value_heads=2, vocab_size=10, max_position_embeddings=64, attention_span=None,
    has_sliding_windows=False,
    packed_problem=None, has_tied_head=True,
)  # fmt: skip


def footprint(**values):
    """The peak is in the backward pass: 180 bytes, of which the forward pass left 140."""
    return Footprint(
        **{
            "phase": "backward", "total_bytes": 180, "held_bytes": 140, "loss_bytes": 0, "num_tensors": 3,
            "resident_bytes_per_parameter": 16.0, **values,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("fp32", 4 * 5768 + 100),
        ("bf16", 2 * 5768 + 100),
        ("fp16", 2 * 5768 + 100),
        ("8bit", 2048 + 3072 + 2 * 648 + 100),
        ("4bit", 1024 + 1536 + 2 * 648 + 100),
    ],
)
def test_base_weights(quantization, expected):
    assert base_weight_bytes(SHAPE, Precision(quantization=quantization)) == expected


def test_quantisation_constants():
    assert quantisation_bytes(SHAPE, Precision(quantization="bf16")) == 0
    assert quantisation_bytes(SHAPE, Precision(quantization="8bit")) == 4 * (32 + 96)
    # 2048 / 64 = 32 and 3072 / 64 = 48 blocks; a table of 16 fp32 for each layer
    single = 4 * 32 + 4 * 48 + 2 * 4 * 16
    assert quantisation_bytes(SHAPE, Precision(quantization="4bit", double_quant=False)) == single
    # a byte for each block; for each layer one block of 256 of them, their mean, and a table of 256
    double = 32 + 48 + 2 * 4 * 16 + 2 * 4 * (1 + 1 + 256)
    assert quantisation_bytes(SHAPE, Precision(quantization="4bit")) == double


def test_double_quantization_saves_0_37_bits_a_weight_on_a_large_layer():
    """The figure of the QLoRA paper: 32/64 = 0.5 bits become 8/64 + 32/(64 x 256) = 0.127 bits."""
    layer = LinearLayer(name="q", role="q", in_features=4096, out_features=4096, is_quantisable=True)
    shape = ModelShape(**{**vars(SHAPE), "linear_layers": (layer,)})
    single = quantisation_bytes(shape, Precision(quantization="4bit", double_quant=False))
    double = quantisation_bytes(shape, Precision(quantization="4bit"))
    assert 8 * single / 4096**2 == pytest.approx(0.5, abs=1e-3)
    assert 8 * double / 4096**2 == pytest.approx(0.127, abs=1e-3)


def test_adapters_gradients_and_moments():
    arm = ArmSize(r=4, module_names=("layers.0.q", "layers.0.up"))
    assert num_trainable(SHAPE, arm) == 4 * (64 + 32) + 4 * (32 + 96)
    assert adapter_bytes(896) == gradient_bytes(896) == 3584
    assert optimizer_bytes(896, beside=2 * 3584, footprint=footprint()) == 2 * 3584


def test_slack_is_half_of_the_rounding_on_cuda_and_nothing_on_a_cpu():
    assert slack_bytes(10, device=CUDA) == 10 * 256
    assert slack_bytes(10, device=CPU) == 0


def test_terms_of_a_pack_add_up_to_the_peak():
    arms = [ArmSize(r=4, module_names=("layers.0.q",))] * 2
    predicted = predict(
        SHAPE, arms, precision=Precision(quantization="fp32"), footprint=footprint(), device=CPU
    )
    assert predicted.phase == "backward"
    assert (predicted.terms.activations, predicted.terms.workspace, predicted.terms.loss) == (140, 40, 0)
    trainable = 2 * 4 * (64 + 32)
    assert predicted.terms.total == 4 * 5768 + 100 + 16 * trainable + 180


def test_where_the_loss_is_the_peak_it_has_a_term_of_its_own():
    steep = footprint(phase="loss", total_bytes=440, loss_bytes=300)
    predicted = predict(
        SHAPE, [ArmSize(r=4, module_names=("layers.0.q",))] * 2, precision=Precision(quantization="fp32"),
        footprint=steep, device=CPU,
    )  # fmt: skip
    assert predicted.phase == "loss"
    assert (predicted.terms.activations, predicted.terms.loss, predicted.terms.workspace) == (140, 300, 0)


def test_cuda_adds_the_workspace_of_cublas_for_both_threads():
    arms = [ArmSize(r=4, module_names=("layers.0.q",))]
    here, there = (
        predict(SHAPE, arms, precision=Precision(quantization="fp32"), footprint=footprint(), device=device)
        for device in (CPU, CUDA)
    )
    assert CUDA_ENVIRONMENT["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert there.terms.workspace - here.terms.workspace == 2 * (8 * 4096) * 1024


def test_an_optimizer_peak_holds_no_activations():
    at_the_end = footprint(phase="optimizer", total_bytes=500)
    predicted = predict(
        SHAPE, [ArmSize(r=4, module_names=("layers.0.q",))], precision=Precision(quantization="fp32"),
        footprint=at_the_end, device=CPU,
    )  # fmt: skip
    assert (predicted.terms.activations, predicted.terms.workspace, predicted.terms.loss) == (0, 500, 0)


def test_part_of_a_pack_has_its_share_of_the_step():
    def of(ranks, total_bytes):
        arms = [ArmSize(r=r, module_names=("layers.0.q",)) for r in ranks]
        counted = footprint(total_bytes=total_bytes, held_bytes=total_bytes - 20)
        return predict(SHAPE, arms, precision=Precision(quantization="fp32"), footprint=counted, device=CPU)

    whole, alone = of((4, 4, 8), 400), [of((4,), 100), of((4,), 100), of((8,), 120)]
    assert part_of(whole, alone_in_whole=alone, alone_in_part=alone) == whole
    part = part_of(whole, alone_in_whole=alone, alone_in_part=alone[:2])
    # 200 of the 320 bytes that the three hold alone: 380 x 0.625 = 238 (237.5) and 20 x 0.625 = 12 (12.5)
    assert (part.terms.activations, part.terms.workspace) == (238, 12)
    assert part.terms.adapters == 2 * 4 * 4 * (64 + 32)
    assert part.terms.base_weights == whole.terms.base_weights


def test_a_footprint_survives_json():
    assert Footprint.from_json(footprint().to_json()) == footprint()


@pytest.mark.parametrize(
    ("device", "quantization", "slides", "span"),
    [("cuda", "bf16", True, None), ("cuda", "4bit", True, None), ("cuda", "fp32", True, 16), ("cpu", "bf16", True, 16), ("cuda", "bf16", False, 16)],
)  # fmt: skip
def test_rows_may_be_longer_than_a_sliding_window_on_a_gpu_in_half_precision(
    device, quantization, slides, span
):
    shape = replace(SHAPE, attention_span=16, has_sliding_windows=slides)
    assert shape.span_on(device, quantization) == span
