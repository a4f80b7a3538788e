"""Peak memory that was predicted before the run, beside what was measured: for a table and for a figure."""

from dataclasses import dataclass

from lorastudy.stats.study import Study


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A prediction and its measurement, in bytes. `arm` is None for a pack."""

    name: str
    arm: str | None
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Predicted over measured, less 1: positive where too much was predicted."""
        return self.predicted / self.measured - 1


def scored_predictions(study: Study) -> tuple[Scored, ...]:
    """One for each arm alone, then one for each pack whose memory was measured."""
    return (*_arms(study), *_packs(study))


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
                    arm=result.arm,
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
            scored = Scored(
                name=name, arm=None, predicted=prediction.pack_bytes, measured=pack.peak_memory_bytes
            )
            found.setdefault(key, scored)
    return list(found.values())
