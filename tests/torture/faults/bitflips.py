"""One bit of a file turns over, at rest, and the file is read.

What is read must be what was written, or an error that says so. A flip may also be harmless: in free space, or
where two spellings mean the same.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lorastudy.errors import StoreError
from lorastudy.protocol.records import RECORDS_NAME, Record, RecordReader
from torture import studies
from torture.harness import FaultResult, Row, counted, listed, tried

ROW = Row(
    fault="one random bit flipped in records.jsonl or in the store",
    must="detected or harmless, never a wrong number",
    short=200,
    default=1000,
    kept=10_000,
    in_memory=True,
)


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Flip bits all over a finished study: half of them in its records, half in its store."""
    studies.run_study(folder, studies.experiments(num_packs=1))
    (records,) = folder.rglob(RECORDS_NAME)
    store = folder / studies.DATABASE
    written, stored = list(RecordReader(records).read_new()), studies.text(studies.content(store))
    judges: dict[Path, Callable[[], str]] = {
        records: lambda: judged_records(records, written),
        store: lambda: judged_store(store, stored),
    }
    sound = {file: file.read_bytes() for file in judges}
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    violations = []
    for number in counted(range(amount), total=amount):
        file = (records, store)[number % 2]
        position = drawn(rng, sound[file])
        file.write_bytes(flipped(sound[file], position))
        outcome = judges[file]()
        outcomes[outcome] += 1
        if outcome not in {"detected", "harmless"}:
            violations.append(f"bit {position} of {file.name}: {outcome}")
        file.write_bytes(sound[file])
    counts = f"{outcomes['detected']} detected, {outcomes['harmless']} harmless"
    return FaultResult(
        fault=ROW.fault,
        num_faults=amount,
        num_violations=len(violations),
        detail="; ".join(filter(None, [counts, listed(violations)])),
    )


def judged_records(records: Path, written: list[Record]) -> str:
    """What came of reading damaged records: all of them, or those before an error."""
    reader, found = RecordReader(records), []
    error = tried(lambda: found.extend(reader.read_new()))
    if found == written and error is None:
        return "harmless"
    if isinstance(error, Exception) and not isinstance(error, ValueError):
        return repr(error)
    is_noticed = error is not None or reader.has_torn_end()
    return "detected" if is_noticed and found == written[: len(found)] else "other records than were written"


def judged_store(store: Path, stored: str) -> str:
    """What came of reading a damaged store: all that it holds, or the one error for that."""
    found = tried(lambda: studies.text(studies.content(store)))
    if isinstance(found, Exception):
        return "detected" if isinstance(found, StoreError) else repr(found)
    return "harmless" if found == stored else "other values than were stored"


def drawn(rng: random.Random, content: bytes) -> int:
    """The position of a bit, mostly where something is written: nine tenths of a small store are empty."""
    while True:
        position = rng.randrange(8 * len(content))
        if content[position // 8] or rng.random() < 0.05:
            return position


def flipped(content: bytes, position: int) -> bytes:
    """The content with the bit at this position turned over."""
    damaged = bytearray(content)
    damaged[position // 8] ^= 1 << position % 8
    return bytes(damaged)
