"""How well memory was predicted: what was said before the run beside what was measured in it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.report.costs import MEMORY_KINDS
from lorastudy.report.document import Block, Cell, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import number, percent, signed, size_unit
from lorastudy.stats.study import Study


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A prediction and what came of it."""

    name: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Predicted over measured, less 1: positive where too much was predicted."""
        return self.predicted / self.measured - 1


def prediction_blocks(study: Study, *, level: int) -> list[Block]:
    """A row for each arm alone, and for each pack on a GPU; nothing where nothing was predicted."""
    arms, packs = _arms(study), _packs(study)
    scored = [*arms, *packs]
    if not scored:
        return []
    kinds = {r.prediction.memory_kind for r in study.completed if r.prediction is not None}
    errors = [abs(each.error) for each in scored]
    text = (
        f"Peak memory was predicted before the run from the model's shape and from one step of the engine, counted "
        f"on tensors without content; measured is {' or '.join(MEMORY_KINDS[kind] for kind in sorted(kinds))}. "
        f"Positive errors mean that too much was predicted. Of {len(scored)} predictions the median absolute error is "
        f"{percent(statistics.median(errors))}, the largest {percent(max(errors))}."
    )
    if "cpu_tensors" in kinds:
        text += " On a CPU the tensors of a whole pack are not measured, only those of each arm alone."
    return [
        Heading(level=level, text="Predicted against measured memory"),
        Paragraph((text,)),
        _table(scored),
    ]


def _arms(study: Study) -> list[Scored]:
    """One for each arm: arms of equal shape are measured once, so seeds add nothing."""
    found: dict[str, Scored] = {}
    for result in study.completed:
        prediction, profile = result.prediction, result.profile
        if prediction is None or profile is None or profile.peak_memory_bytes is None:
            continue
        if prediction.memory_kind == profile.memory_kind:
            found.setdefault(
                result.arm,
                Scored(
                    name=f"{result.arm}, alone",
                    predicted=prediction.alone_bytes,
                    measured=profile.peak_memory_bytes,
                ),
            )
    return list(found.values())


def _packs(study: Study) -> list[Scored]:
    found: dict[object, Scored] = {}
    for result in study.completed:
        prediction, pack = result.prediction, result.pack_profile
        if prediction is None or pack is None or pack.peak_memory_bytes is None:
            continue
        if prediction.memory_kind == pack.memory_kind:
            key = (result.pack_id, result.attempt)
            name = f"pack {len(found) + 1}, {pack.num_arms} experiments"
            scored = Scored(name=name, predicted=prediction.pack_bytes, measured=pack.peak_memory_bytes)
            found.setdefault(key, scored)
    return list(found.values())


def _table(scored: Sequence[Scored]) -> Table:
    unit, scale = size_unit(each.measured for each in scored)
    columns = (
        TableColumn("What trained", numeric=False), TableColumn(f"Predicted ({unit})"), TableColumn(f"Measured ({unit})"),
        TableColumn("Error (%)"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.name),
            Cell(number(each.predicted / scale, 2), each.predicted),
            Cell(number(each.measured / scale, 2), each.measured),
            Cell(signed(100 * each.error, 1), each.error),
        )
        for each in scored
    )
    return Table(columns=columns, rows=rows)
