"""Where one arm of the reference engine stands: its parameters, and what torch and transformers keep about them.

All that makes a step is theirs (AdamW, GradScaler, the schedule); this says only how to save it and to go on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from lorastudy.engine.arms import Arm, stream_seed
from lorastudy.engine.optimise import INITIAL_SCALE
from lorastudy.engine.state import ArmState

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Course:
    """One arm's optimizer, schedule, loss scale and stream of dropout masks."""

    def __init__(
        self, arm: Arm, parameters: Sequence[nn.Parameter], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.arm = arm
        self.parameters = list(parameters)
        self.num_steps_done = 0
        self.is_diverged = False
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=arm.learning_rate,
            betas=(arm.adam_beta1, arm.adam_beta2),
            eps=arm.adam_epsilon,
            weight_decay=arm.weight_decay,
        )
        self.schedule: Any = get_scheduler(
            arm.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=arm.num_warmup_steps,
            num_training_steps=arm.num_steps,
        )
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=dtype is torch.float16, init_scale=INITIAL_SCALE
        )
        self._device = device
        self._is_drawing = False
        self._stream: dict[str, Tensor] = {}

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.is_diverged or self.num_steps_done >= self.arm.num_steps

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Within, torch's own stream, from which PEFT draws dropout, is this arm's alone."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed("dropout", self.arm.seed))
            if self._stream:
                torch.set_rng_state(self._stream["rng_cpu"])
            if "rng_cuda" in self._stream:
                torch.cuda.set_rng_state(self._stream["rng_cuda"], self._device)
            self._is_drawing = True
            try:
                yield
            finally:
                self._stream, self._is_drawing = self._where_the_stream_is(), False

    def state(self) -> ArmState:
        """A copy, on the CPU."""
        scale = self.scaler.state_dict()
        tensors: dict[str, Tensor] = {
            f"weights.{number}": value for number, value in enumerate(self.parameters)
        }
        for number, parameter in enumerate(self.parameters):
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{name}.{number}": moments[name] for name in _MOMENTS if name in moments}
        tensors |= self._where_the_stream_is()
        return ArmState(
            experiment_id=self.arm.experiment_id,
            num_steps_done=self.num_steps_done,
            is_diverged=self.is_diverged,
            numbers={
                "num_steps_taken": self.schedule.last_epoch,
                "loss_scale": scale.get("scale", 1.0),
                "num_good_steps": scale.get("_growth_tracker", 0),
            },
            tensors={name: value.detach().to("cpu", copy=True) for name, value in tensors.items()},
        )

    @torch.no_grad()
    def restore(self, state: ArmState) -> None:
        """Go on from there."""
        self.num_steps_done, self.is_diverged = state.num_steps_done, state.is_diverged
        self._stream = {name: state.tensors[name] for name in state.tensors if name.startswith("rng_")}
        num_taken = int(state.numbers["num_steps_taken"])
        for number, parameter in enumerate(self.parameters):
            parameter.copy_(state.tensors[f"weights.{number}"])
            if num_taken:
                moments = {name: state.tensors[f"{name}.{number}"].to(parameter.device) for name in _MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(num_taken)), **moments}
        if self.scaler.is_enabled():
            scale, good = state.numbers["loss_scale"], int(state.numbers["num_good_steps"])
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": good})
        self._set_schedule(num_taken)

    def _set_schedule(self, num_taken: int) -> None:
        """What this many `step()` calls leave behind; each sets the rate from its number alone."""
        rates = [base * self.schedule.lr_lambdas[0](num_taken) for base in self.schedule.base_lrs]
        self.schedule.load_state_dict(
            self.schedule.state_dict()
            | {"last_epoch": num_taken, "_step_count": num_taken + 1, "_last_lr": rates}
        )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _where_the_stream_is(self) -> dict[str, Tensor]:
        if not self._is_drawing:
            return self._stream
        stream = {"rng_cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            stream["rng_cuda"] = torch.cuda.get_rng_state(self._device)
        return stream
