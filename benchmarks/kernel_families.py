"""Kernels of a layer in every family that the packed engine serves on a GPU, counted without one.

    python -m benchmarks.kernel_families                  count all families: benchmarks/results/kernel_families.json
    python -m benchmarks.kernel_families llama mistral    count these and print them

Each family is a random model at the tiny sizes of `benchmarks.families`, on the meta device. A layer's kernels are those that
a step launches with four layers and not with three, forward and backward. The rows have three lengths, so that attention
that is not one call for all rows shows as three calls or more. `benchmarks.kernel_count` says how kernels are counted.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.families import RESULTS as FAMILY_RESULTS
from benchmarks.families import config_of
from benchmarks.kernel_count import Kernels, kernels_of
from lorastudy.engine.fake_model import FakeModels
from lorastudy.protocol.jobs import CountedArm, FootprintQuestion, Precision

RESULTS = Path(__file__).parent / "results" / "kernel_families.json"
NUM_LAYERS, RANKS, ROW_LENGTHS = (3, 4), (4, 8), (9, 12, 15)
#: Attention's operations: a kernel for all rows, and a kernel for the rows of one length.
_ALL_ROWS, _ONE_LENGTH = "_flash_attention_forward", "_scaled_dot_product"


@dataclass(frozen=True, kw_only=True)
class FamilyKernels:
    """What a step launches in one more layer. `waits` are those before the step's end, of the whole model."""

    family: str
    preset: str
    forward: int
    backward: int
    attention_calls: int
    is_flash: bool
    """Whether attention is the kernel that takes rows of any lengths."""
    waits: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the families; write the counts of all, or print those of some."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_families")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    chosen = parser.parse_args(arguments).families
    presets = served_presets()
    counted = []
    for family in chosen or presets:
        counted.append(asdict(count_family(family, preset=presets[family])))
        print(counted[-1], flush=True)
    if not chosen:
        libraries = {name: version(name) for name in ("torch", "transformers")}
        body = {"ranks": RANKS, "row_lengths": ROW_LENGTHS, "versions": libraries, "families": counted}
        RESULTS.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


def served_presets() -> Mapping[str, str]:
    """The families that the packed engine trains, with the largest preset of each."""
    measured = json.loads(FAMILY_RESULTS.read_text(encoding="utf-8"))["families"]
    packed = {
        family: [cell["preset"] for cell in cells if cell["engine"] == "packed"]
        for family, cells in measured.items()
    }
    return {family: presets[-1] for family, presets in packed.items() if presets}


def count_family(family: str, *, preset: str) -> FamilyKernels:
    """Count a step of two arms in bf16, with three layers and with four.

    Raises:
        ModelError: the model cannot be built, or the engine cannot train it.
    """
    fewer, more = (_counted(family, preset=preset, num_layers=number) for number in NUM_LAYERS)
    flash, others = (
        _difference(fewer, more, phase="forward", name=name) for name in (_ALL_ROWS, _ONE_LENGTH)
    )
    return FamilyKernels(
        family=family,
        preset=preset,
        forward=_difference(fewer, more, phase="forward"),
        backward=_difference(fewer, more, phase="backward"),
        attention_calls=flash + others,
        is_flash=flash > 0,
        waits=sum(number for (phase, _), number in more.waits.items() if phase != "optimizer"),
    )


def _counted(family: str, *, preset: str, num_layers: int) -> Kernels:
    with tempfile.TemporaryDirectory() as folder:
        config_of(family, num_layers=num_layers).save_pretrained(folder)
        question = FootprintQuestion(
            engine="packed",
            device_kind="cuda",
            folder=folder,
            precision=Precision(quantization="bf16"),
            arms=tuple(CountedArm(r=r, targets=(preset, None)) for r in RANKS),
            gradient_checkpointing=False,
            row_lengths=ROW_LENGTHS,
            num_labels=sum(ROW_LENGTHS) // 2,
        )
        return kernels_of(question, models=FakeModels())


def _difference(fewer: Kernels, more: Kernels, *, phase: str, name: str = "") -> int:
    """The launches in one more layer, of the operations whose name begins with `name`."""

    def launches(kernels: Kernels) -> Iterable[int]:
        return (
            number
            for (of, operation), number in kernels.launches.items()
            if of == phase and operation.startswith(name)
        )

    return sum(launches(more)) - sum(launches(fewer))


def kernels_by_family(path: Path = RESULTS) -> Mapping[str, Any]:
    """What is on record, by family."""
    return {each["family"]: each for each in json.loads(path.read_text(encoding="utf-8"))["families"]}


if __name__ == "__main__":
    sys.exit(main())
