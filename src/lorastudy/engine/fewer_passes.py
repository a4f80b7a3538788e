"""RMS norms and rotary positions with their derivatives written out: the model's numbers in half the time on a CPU.

    C channels of a head, D hidden size, ... whatever stands before

transformers writes both as chains of small operations, and autograd makes as many of each derivative; on a CPU every one
of them is a pass over memory. Only what is the model's own is replaced, and only where it gives the same numbers when
asked; an engine that is not running leaves no trace in the model.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROTATION = "apply_rotary_pos_emb"
#: Relative difference of outputs that the order of rounding explains, by bytes of the precision. In half precision a norm
#: that multiplies before it rounds (OLMo's) lies above it.
TOLERANCE = {4: 1e-6, 2: 5e-4}


@dataclass(frozen=True, kw_only=True)
class FewerPasses:
    """What of a model is computed here. `rotations` are the modules of code that hold the function."""

    norms: tuple[nn.Module, ...] = ()
    rotations: tuple[Any, ...] = ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, the model runs with them, forward and backward."""
        with ExitStack() as stack:
            for norm in self.norms:
                norm.forward = _ours(norm)
                stack.callback(delattr, norm, "forward")  # the class's own is there again
            for code in self.rotations:
                stack.callback(setattr, code, ROTATION, getattr(code, ROTATION))
                setattr(code, ROTATION, rotated)
            yield


@torch.no_grad()
def fewer_passes(model: nn.Module, *, device: torch.device) -> FewerPasses:
    """What can be computed here of a model on that device: nothing but on a CPU, where it was measured."""
    if device.type != "cpu":
        return FewerPasses()
    norms = [module for module in model.modules() if _looks_like_rms_norm(module)]
    kinds = {type(norm): norm for norm in norms}
    same = {
        kind for kind, norm in kinds.items() if gives_the_same(norm.forward, _ours(norm), *_norm_inputs(norm))
    }
    codes = {sys.modules[type(module).__module__] for module in model.modules()}
    return FewerPasses(
        norms=tuple(norm for norm in norms if type(norm) in same),
        rotations=tuple(
            code
            for code in codes
            if hasattr(code, ROTATION)
            and gives_the_same(getattr(code, ROTATION), rotated, *_rotation_inputs())
        ),
    )


def gives_the_same(own: Callable[..., Any], ours: Callable[..., Any], *inputs: Tensor) -> bool:
    """Whether both give the same, but for rounding; an error is another answer."""
    try:
        pairs = list(zip(_tensors(own(*inputs)), _tensors(ours(*inputs)), strict=True))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return all(
        float((x - own_x).float().norm() / own_x.float().norm()) <= TOLERANCE[own_x.element_size()]
        for own_x, x in pairs
    )


def rms_norm(x: Tensor, *, weight_D: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)`, times the weight; computed in fp32, rounded before the product, as Llama does."""
    y: Tensor = _RmsNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]  # torch
    return y


def rotated(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys with their positions: channel c and channel c + C/2 are the two sides of one angle."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]  # torch


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / rms and g = dy w:  dx = r g - x r^3 mean(g x). The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_fp32 = x.float()
        mean_square = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        reciprocal = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, reciprocal, weight_D)
        y: Tensor = (x_fp32 * reciprocal).to(x.dtype).mul_(weight_D)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, reciprocal, weight_D = ctx.saved_tensors
        x_fp32, g = x.float(), (dy * weight_D).float()
        along_x = torch.linalg.vecdot(g, x_fp32).unsqueeze(-1)
        dx = g.mul_(reciprocal).addcmul_(x_fp32, along_x.mul_(reciprocal.pow(3)), value=-1.0 / x.shape[-1])
        return dx.to(x.dtype), None, None


class _Rotation(torch.autograd.Function):
    """y = x cos + (-x2, x1) sin, with x1 and x2 the halves of the channels; its transpose turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1.0)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        cos, sin = ctx.saved_tensors
        half = dy.shape[-1] // 2
        dx = dy * cos
        dx[..., :half].addcmul_(dy[..., half:], sin[..., half:])
        dx[..., half:].addcmul_(dy[..., :half], sin[..., :half], value=-1.0)
        return dx, None, None


def _looks_like_rms_norm(module: nn.Module) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "weight")
        and hasattr(module, "variance_epsilon")
    )


def _ours(norm: Any) -> Callable[[Tensor], Tensor]:
    return partial(rms_norm, weight_D=norm.weight, eps=norm.variance_epsilon)


def _norm_inputs(norm: Any) -> list[Tensor]:
    return [torch.linspace(-2.0, 3.0, norm.weight.numel(), dtype=norm.weight.dtype)]


def _rotation_inputs() -> list[Tensor]:
    """Queries, keys, cosines and sines of two tokens, two heads, four channels."""
    q = torch.linspace(-1.0, 2.0, 16).view(1, 2, 2, 4)
    angle = torch.tensor([[[0.1, 0.7, 0.1, 0.7], [0.2, 1.4, 0.2, 1.4]]])
    return [q, q.flip(-1), angle.cos(), angle.sin()]


def _tensors(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)
