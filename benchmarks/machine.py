"""On what it was measured: processor, memory, versions, commit. Imports no ML library."""

import os
import platform
import re
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Instruction sets that decide how fast a matrix product can be.
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


def head(*, device_name: str | None = None, now: datetime) -> dict[str, Any]:
    """What stands at the top of a results file. `device_name` is the accelerator's, if one did the work."""
    return {
        "made_at": now.isoformat(timespec="seconds"),
        "device": device_name or processor()["model"],
        "machine": {
            "processor": processor(),
            "num_cores": os.cpu_count(),
            "num_usable_cores": num_usable_cores(),
            "num_threads_asked": os.environ.get("OMP_NUM_THREADS"),
            "memory_bytes": memory_bytes(),
            "system": f"{platform.system()} {platform.release()}",
            "load_average": load_average(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "commit": commit(),
    }


def stem(head_: dict[str, Any]) -> str:
    """`<date>-<device>`, the name of the results file."""
    words = re.sub(r"\([^)]*\)|\b(cpu|processor)\b", " ", head_["device"].lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", words)) or "machine"
    return f"{head_['made_at'][:10]}-{slug}"


def processor() -> dict[str, Any]:
    """Model name and those of `FLAGS` that it has."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = set(values.get("flags", "").split())
    return {
        "model": values.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in has],
    }


def num_usable_cores() -> int | None:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_bytes() -> int | None:
    """All of the machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def load_average() -> float | None:
    """Processes that wanted a core over the last minute; more than there are cores is a busy machine."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def commit() -> dict[str, Any]:
    """The commit of the repository, and whether tracked files differ from it; None outside of a repository."""
    name = _git("rev-parse", "HEAD")
    if name is None:
        return {"name": None, "is_changed": None}
    return {"name": name, "is_changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
