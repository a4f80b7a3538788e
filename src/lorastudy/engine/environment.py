"""The libraries, device and threads on which a run's numbers depend, and the detection of out-of-memory errors."""

import os
import platform
from pathlib import Path

import torch

from lorastudy.protocol.records import Environment
from lorastudy.version import installed_version


def environment(device: torch.device) -> Environment:
    """This process's libraries, device and thread count, and whether it now computes deterministically."""
    is_deterministic = device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
    return Environment(
        python=platform.python_version(),
        torch=installed_version("torch"),
        transformers=installed_version("transformers"),
        peft=installed_version("peft"),
        bitsandbytes=installed_version("bitsandbytes"),
        lorastudy=installed_version("lorastudy"),
        device=device.type,
        device_name=device_name(device),
        num_threads=torch.get_num_threads(),
        algorithms="deterministic" if is_deterministic else "fastest",
    )


def cuda_allocator(device: torch.device) -> str | None:
    """The settings of CUDA's allocator, from the variable that it reads; None on a CPU."""
    if device.type != "cuda":
        return None
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the first one that is set counts
    return next((os.environ[name] for name in names if name in os.environ), "")


#: Texts of plain RuntimeErrors that mean out of memory: from torch's CPU allocator, from CUDA, and from cuBLAS and
#: cuDNN, which have their own allocations.
_NO_MEMORY = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or this process ran out of memory. It is the only failure that a smaller pack may avoid."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def device_name(device: torch.device) -> str:
    """The device's model name; a CPU's contains its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
