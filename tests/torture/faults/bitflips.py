"""One bit of a file turns over, at rest, and the file is read.

What is read must be what was written, or an error that says so. A flip may also be harmless: in free space, or
where two spellings mean the same.
"""

import random
from collections import Counter
from pathlib import Path

from lorastudy.records import RECORDS_NAME, Record, RecordReader
from torture import studies
from torture.harness import FaultResult, Row, counted, listed, tried

ROW = Row(
    fault="one random bit flipped in records.jsonl",
    must="detected or harmless, never a wrong number",
    short=200,
    default=1000,
    kept=1000,
)


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Flip bits all over the records of a finished study."""
    studies.run_study(folder, studies.experiments(num_packs=1))
    (records,) = folder.rglob(RECORDS_NAME)
    sound, written = records.read_bytes(), list(RecordReader(records).read_new())
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    violations = []
    for position in counted((rng.randrange(8 * len(sound)) for _ in range(amount)), total=amount):
        records.write_bytes(flipped(sound, position))
        outcome = judged(records, written)
        outcomes[outcome] += 1
        if outcome not in {"detected", "harmless"}:
            violations.append(f"bit {position} of {RECORDS_NAME}: {outcome}")
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("detected", "harmless"))
    return FaultResult(
        fault=ROW.fault,
        num_faults=amount,
        num_violations=len(violations),
        detail="; ".join(filter(None, [counts, listed(violations)])),
    )


def judged(records: Path, written: list[Record]) -> str:
    """What came of reading damaged records."""
    reader, found = RecordReader(records), []
    error = tried(lambda: found.extend(reader.read_new()))
    if found == written and error is None:
        return "harmless"
    if isinstance(error, Exception) and not isinstance(error, ValueError):
        return repr(error)
    is_noticed = error is not None or reader.has_torn_end()
    return "detected" if is_noticed and found == written[: len(found)] else "other records than were written"


def flipped(content: bytes, position: int) -> bytes:
    """The content with the bit at this position turned over."""
    damaged = bytearray(content)
    damaged[position // 8] ^= 1 << position % 8
    return bytes(damaged)
