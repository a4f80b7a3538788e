"""RMS norms, rotary positions and GELU in few operations: the same numbers with fewer passes and fewer kernels.

    N all dimensions before the last one, D hidden size
    K arms, H heads, S tokens, C channels of a head; J channels of one half of them

transformers writes these as chains of small operations, and autograd adds as many for each derivative. On a CPU each
of them is a pass over memory, and on a GPU a kernel. This module fuses several into one. An operation is replaced only
if a test on a few numbers gives the model's own result, and only while an engine runs the model.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional

from lorastudy.engine.environment import is_out_of_memory

ROTATION = "apply_rotary_pos_emb"
_ACTIVATIONS = "transformers.activations"
#: Largest relative difference of outputs due to the order of rounding. A norm that multiplies before it rounds (OLMo's)
#: differs by more in half precision.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 5e-4, torch.float16: 6e-5}


@dataclass(frozen=True, kw_only=True)
class FusedOps:
    """The replaceable operations of a model. `rotations` are the Python modules that hold the rotary function."""

    norms: tuple[nn.Module, ...] = ()
    rotations: tuple[Any, ...] = ()
    gelus: tuple[nn.Module, ...] = ()
    device_kind: str = "cpu"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In this context the model uses the fused operations, forward and backward."""
        with ExitStack() as stack:
            forwards = [(norm, _norm_of(norm, device_kind=self.device_kind)) for norm in self.norms]
            for module, forward in [*forwards, *((gelu, tanh_gelu) for gelu in self.gelus)]:
                module.forward = forward
                stack.callback(delattr, module, "forward")  # makes the class's own method visible again
            for code in self.rotations:
                own = getattr(code, ROTATION)
                stack.callback(setattr, code, ROTATION, own)
                setattr(code, ROTATION, partial(_rotated_where_it_can_be, own))
            yield


@torch.no_grad()
def find_fused_ops(model: nn.Module, *, device: torch.device) -> FusedOps:
    """The fusible operations of a model.

    The tests use their own numbers on the CPU, never the model's, so a model of fake tensors gets the same answer.
    """
    kind = device.type
    codes = {sys.modules[type(module).__module__] for module in model.modules()}
    with unset_fake_temporarily():
        return FusedOps(
            norms=tuple(module for module in model.modules() if _is_rms_norm(module, device_kind=kind)),
            rotations=tuple(code for code in codes if _is_rotation(getattr(code, ROTATION, None))),
            gelus=tuple(module for module in model.modules() if _is_tanh_gelu(module)),
            device_kind=kind,
        )


def gives_the_same(own: Callable[..., Any], ours: Callable[..., Any], *inputs: Tensor) -> bool:
    """Whether both functions give the same result up to rounding. An error counts as a difference."""
    try:
        pairs = list(zip(_tensors(own(*inputs)), _tensors(ours(*inputs)), strict=True))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return all(
        own_x.dtype == x.dtype and _relative(x.float(), own_x.float()) <= TOLERANCES[x.dtype]
        for own_x, x in pairs
    )


def rms_norm(x_ND: Tensor, *, weight_D: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` times the weight. Computed in fp32 and rounded before the product, as in Llama."""
    y_ND: Tensor = _RmsNorm.apply(x_ND, weight_D, eps)  # type: ignore[no-untyped-call]  # torch
    return y_ND


def cuda_rms_norm(x_ND: Tensor, *, weight_D: Tensor, eps: float) -> Tensor:
    """`rms_norm` with torch's own kernel, which is fused on CUDA alone. Both round before they multiply by the weight."""
    return functional.rms_norm(x_ND, (x_ND.shape[-1],), None, eps) * weight_D


def tanh_gelu(x_ND: Tensor) -> Tensor:
    """GELU by tanh: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

    In half precision it rounds once, where transformers' chain of operations rounds after each of them.
    """
    return functional.gelu(x_ND, approximate="tanh")


def rotated(
    q_KHSC: Tensor, k_KHSC: Tensor, cos_1SC: Tensor, sin_1SC: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by their positions. Channels j and j + C/2 form one rotated pair."""
    both: tuple[Tensor, Tensor] = _Rotation.apply(  # type: ignore[no-untyped-call]  # torch
        q_KHSC, k_KHSC, cos_1SC.unsqueeze(unsqueeze_dim), sin_1SC.unsqueeze(unsqueeze_dim)
    )
    return both


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / rms and g = dy w:  dx = r g - x r^3 mean(g x). The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        fp32_ND = x_ND.float()
        mean_square_N1 = (
            torch.linalg.vector_norm(fp32_ND, dim=-1, keepdim=True).square_().div_(x_ND.shape[-1])
        )
        r_N1 = mean_square_N1.add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, r_N1, weight_D)
        y_ND: Tensor = (fp32_ND * r_N1).to(x_ND.dtype).mul_(weight_D)
        return y_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_ND,) = grads
        x_ND, r_N1, weight_D = ctx.saved_tensors
        fp32_ND, g_ND = x_ND.float(), (dy_ND * weight_D).float()
        along_x_N1 = torch.linalg.vecdot(g_ND, fp32_ND).unsqueeze(-1).mul_(r_N1.pow(3))
        dx_ND = g_ND.mul_(r_N1).addcmul_(fp32_ND, along_x_N1, value=-1.0 / x_ND.shape[-1])
        return dx_ND.to(x_ND.dtype), None, None


class _Rotation(torch.autograd.Function):
    """y = x cos + (-x2, x1) sin, with x1 and x2 the halves of the channels. The transpose rotates back.

    Queries and keys in one function, since on a GPU the host's time for a function counts.
    """

    @staticmethod
    def forward(
        ctx: Any, q_KHSC: Tensor, k_KHSC: Tensor, cos_11SC: Tensor, sin_11SC: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_11SC, sin_11SC)
        sines = sin_11SC.chunk(2, dim=-1)
        return tuple(_turned(x, cos_11SC=cos_11SC, sines=sines, sign=1.0) for x in (q_KHSC, k_KHSC))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_11SC, sin_11SC = ctx.saved_tensors
        s1_11SJ, s2_11SJ = sin_11SC.chunk(2, dim=-1)
        dq_KHSC, dk_KHSC = (
            _turned(dy, cos_11SC=cos_11SC, sines=(s2_11SJ, s1_11SJ), sign=-1.0) if is_needed else None
            for dy, is_needed in zip(grads, ctx.needs_input_grad, strict=False)
        )
        return dq_KHSC, dk_KHSC, None, None


def _turned(x_KHSC: Tensor, *, cos_11SC: Tensor, sines: tuple[Tensor, ...], sign: float) -> Tensor:
    """The channels rotated by the angles. `sines` are those of the first and of the second half of the result."""
    y_KHSC = x_KHSC * cos_11SC
    (x1_KHSJ, x2_KHSJ), (y1_KHSJ, y2_KHSJ) = x_KHSC.chunk(2, dim=-1), y_KHSC.chunk(2, dim=-1)
    y1_KHSJ.addcmul_(x2_KHSJ, sines[0], value=-sign)
    y2_KHSJ.addcmul_(x1_KHSJ, sines[1], value=sign)
    return y_KHSC


def _rotated_where_it_can_be(own: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Our rotation if it covers all channels of a head in one precision, else the model's own.

    Some models rotate only a part of the channels, or rotate in fp32.
    """
    q, _, cos, *_ = inputs if len(inputs) >= 4 else (None, None, None)
    is_whole = cos is not None and cos.shape[-1] == q.shape[-1] and cos.dtype == q.dtype
    return (rotated if is_whole else own)(*inputs, **options)


def _is_rotation(own: Callable[..., Any] | None) -> bool:
    """Whether a function is the rotation above. Tested on two tokens, two heads, four channels."""
    if own is None:
        return False
    q_KHSC = torch.linspace(-1.0, 2.0, 16).view(1, 2, 2, 4)
    angle_1SC = torch.tensor([[[0.1, 0.7, 0.1, 0.7], [0.2, 1.4, 0.2, 1.4]]])
    return gives_the_same(own, rotated, q_KHSC, q_KHSC.flip(-1), angle_1SC.cos(), angle_1SC.sin())


def _is_tanh_gelu(module: nn.Module) -> bool:
    """Whether a module of transformers' activations is the GELU above. Tested in fp32, where rounding hides nothing."""
    x_N = torch.linspace(-6.0, 6.0, 49)
    return type(module).__module__ == _ACTIVATIONS and gives_the_same(module.forward, tanh_gelu, x_N)


def _is_rms_norm(module: nn.Module, *, device_kind: str) -> bool:
    """Whether a module is the RMS norm above.

    Tested on a twin with different weights per channel, since the module's own weight may have no content, or be 1.
    """
    weight_D: Any = getattr(module, "weight", None)
    if not (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight_D, Tensor)
        and weight_D.dtype in TOLERANCES
        and hasattr(module, "variance_epsilon")
    ):
        return False
    twin = copy.copy(module)
    values_D = torch.linspace(0.5, 2.0, weight_D.numel(), dtype=weight_D.dtype)
    twin.__dict__["_parameters"] = {"weight": nn.Parameter(values_D, requires_grad=False)}
    x_D = torch.linspace(-2.0, 3.0, weight_D.numel(), dtype=weight_D.dtype)
    return gives_the_same(twin.forward, _norm_of(twin, device_kind=device_kind), x_D)


def _norm_of(norm: Any, *, device_kind: str) -> Callable[[Tensor], Tensor]:
    ours = cuda_rms_norm if device_kind == "cuda" else rms_norm
    return partial(ours, weight_D=norm.weight, eps=norm.variance_epsilon)


def _tensors(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _relative(one: Tensor, other: Tensor) -> float:
    """The relative difference. Uses `tolist`, which modes that count operations do not intercept."""
    difference, size = torch.stack([(one - other).norm(), other.norm()]).tolist()
    return float(difference / size)
