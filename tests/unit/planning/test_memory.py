"""Every term of the prediction against arithmetic that is shown."""

import pytest

from lorastudy.planning.memory import (
    ArmSize,
    Device,
    adapter_bytes,
    base_weight_bytes,
    gradient_bytes,
    load_of,
    num_trainable,
    optimizer_bytes,
    predict,
    quantisation_bytes,
    slack_bytes,
)
from lorastudy.planning.shapes import LinearLayer, ModelShape
from lorastudy.protocol.footprint import Footprint, Load, MicroBatch, Moment
from lorastudy.protocol.jobs import Precision

CPU, CUDA = Device(kind="cpu"), Device(kind="cuda", compute_capability=8)

#: Two linear layers, 64 x 32 and 32 x 96, an embedding of 10 x 64 and 8 more weights: 2048 + 3072 + 640 + 8.
SHAPE = ModelShape(
    model_type="llama",
    linear_layers=(
        LinearLayer(name="layers.0.q", role="q", in_features=64, out_features=32, is_quantisable=True),
        LinearLayer(name="layers.0.up", role="mlp", in_features=32, out_features=96, is_quantisable=True),
    ),
    num_parameters=5768, num_layer_parameters=5128, num_tensors=4, buffer_bytes=100, hidden_size=64, num_layers=1,
    num_attention_heads=2, num_key_value_heads=2, vocab_size=10, max_position_embeddings=64, attention_span=None,
    packed_problem=None, has_tied_head=True,
)  # fmt: skip
BATCH = MicroBatch(row_lengths=(6, 4), num_labels=5)


def padded(coefficients):
    return tuple(float(value) for value in (*coefficients, *[0] * (9 - len(coefficients))))


def moment(phase, coefficients, *, per_layer=()):
    return Moment(
        phase=phase, coefficients=padded(coefficients), per_layer=padded(per_layer), num_tensors=3,
        num_tensors_per_layer=1,
    )  # fmt: skip


def footprint(**values):
    """Holds 7 bytes per arm and token when the loss begins, 9 in the backward pass; the loss adds 3 per row."""
    return Footprint(
        **{
            "moments": (moment("backward", (0, 0, 0, 9)), moment("optimizer", (50,))),
            "at_loss": moment("loss", (0, 0, 0, 7)),
            "num_further_layers": 0,
            "loss_growth": ((1, 3), (10, 30), (20, 30)),
            "resident_bytes_per_parameter": 16.0,
            "largest_residual": 0.0,
            **values,
        }
    )


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
    assert optimizer_bytes(896, footprint=footprint()) == 2 * 3584


def test_slack_is_half_of_the_rounding_on_cuda_and_nothing_on_a_cpu():
    assert slack_bytes(10, device=CUDA) == 10 * 256
    assert slack_bytes(10, device=CPU) == 0


def test_terms_of_a_pack_add_up_to_the_peak():
    arms = [ArmSize(r=4, module_names=("layers.0.q",))] * 2
    predicted = predict(
        SHAPE, arms, precision=Precision(quantization="fp32"), batch=BATCH, footprint=footprint(), device=CPU
    )
    # 2 arms x 10 tokens x 9 bytes in the backward pass = 180, of which 140 are held; the loss reaches 140 + 30 = 170
    assert predicted.phase == "backward"
    assert (predicted.terms.activations, predicted.terms.workspace, predicted.terms.loss) == (140, 40, 0)
    trainable = 2 * 4 * (64 + 32)
    assert predicted.terms.total == 4 * 5768 + 100 + 16 * trainable + 180


def test_where_the_loss_is_the_peak_it_has_a_term_of_its_own():
    steep = footprint(loss_growth=((1, 30), (10, 300)))
    predicted = predict(
        SHAPE, [ArmSize(r=4, module_names=("layers.0.q",))] * 2, precision=Precision(quantization="fp32"),
        batch=BATCH, footprint=steep, device=CPU,
    )  # fmt: skip
    assert predicted.phase == "loss"
    assert (predicted.terms.activations, predicted.terms.loss, predicted.terms.workspace) == (140, 300, 0)


def test_cuda_adds_the_workspace_of_cublas_for_both_threads():
    arms = [ArmSize(r=4, module_names=("layers.0.q",))]
    here, there, hopper = (
        predict(SHAPE, arms, precision=Precision(quantization="fp32"), batch=BATCH, footprint=footprint(), device=device)
        for device in (CPU, CUDA, Device(kind="cuda", compute_capability=9))
    )  # fmt: skip
    assert there.terms.workspace - here.terms.workspace == 2 * (2 * 4096 + 8 * 16) * 1024
    assert hopper.terms.workspace - here.terms.workspace == 2 * 32 * 2**20


def test_further_layers_add_to_each_moment_what_one_layer_added():
    deep = footprint(
        moments=(moment("backward", (0, 0, 0, 9), per_layer=(0, 0, 0, 2)), moment("backward", (1000,))),
        at_loss=moment("loss", (0, 0, 0, 7), per_layer=(0, 0, 0, 2)),
        num_further_layers=30,
    )
    load = load_of(SHAPE, [ArmSize(r=4, module_names=("layers.0.q",))] * 2, batch=BATCH)
    peak = deep.peak(load)
    assert (peak.total_bytes, peak.held_bytes) == (20 * (9 + 30 * 2), 20 * (7 + 30 * 2))
    assert peak.num_tensors == 3 + 30


def test_arms_of_unlike_shape_count_with_their_share():
    arms = [
        ArmSize(r=8, module_names=("layers.0.q",)),
        ArmSize(r=8, module_names=("layers.0.q",)),
        ArmSize(r=2, module_names=("layers.0.q", "layers.0.up")),
    ]
    load = load_of(SHAPE, arms, batch=BATCH)
    # the widths are 96 and 128: the first group has 2 x 8 x 96 / 224 of the rank, the second all of its 2
    assert load.rank == pytest.approx(16 * 96 / 224)
    assert load.rank_all == pytest.approx(8 / 2 + 8 / 2 + 2)
    assert (load.num_tokens, load.num_labels, load.num_squares) == (10, 5, 36 + 16)


def test_the_loss_bends_where_its_chunks_are_full():
    sizes = {"num_arms": 1, "num_tokens": 1, "num_squares": 1, "rank": 1.0, "rank_all": 1.0}
    grown = [footprint().loss_bytes(Load(num_labels=labels, **sizes)) for labels in (1, 5, 10, 15, 40)]
    assert grown == [3, 15, 30, 30, 30]


def test_a_footprint_survives_json():
    assert Footprint.from_json(footprint().to_json()) == footprint()
