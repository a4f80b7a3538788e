"""Samples and result files with round numbers, so that a test can redo the arithmetic."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import documents
from benchmarks.results import BASELINE, BASELINE_TUNED, OURS, Quality, Row, Sample, write_results

#: (train, whole process) of three rounds. Pair by pair: 20/10, 22/11, 36/12 = 2, 2, 3; whole: 3, 4, 2.
OURS_SECONDS = ((10.0, 20.0), (11.0, 20.0), (12.0, 30.0))
THEIRS_SECONDS = ((20.0, 60.0), (22.0, 80.0), (36.0, 60.0))


def samples_of(side: str, seconds) -> list[Sample]:
    return [
        Sample(side=side, round=number, train_seconds=train, wall_seconds=wall)
        for number, (train, wall) in enumerate(seconds)
    ]


@pytest.fixture
def samples():
    return tuple(
        samples_of(OURS, OURS_SECONDS)
        + samples_of(BASELINE, THEIRS_SECONDS)
        + samples_of(BASELINE_TUNED, THEIRS_SECONDS)
    )


@pytest.fixture
def make_row(samples):
    asked = {
        row["id"]: row["expects"]
        for row in json.loads((documents.ROOT / "benchmarks" / "rows.json").read_text(encoding="utf-8"))
    }

    def make(row_id: str = "lab", **values) -> Row:
        row = {
            "id": row_id,
            "setting": asked[row_id] | {"model": "a model"},
            "samples": samples,
            "repeats": (Sample(side=OURS, round=2, train_seconds=15.0, wall_seconds=24.0),),
            "num_tokens": 5500,
            "num_parameters": 1000,
            "peak_flops": 10_000_000.0,
            "quality": Quality(compared="losses", tolerance=1e-4, largest_difference=2e-5, own_start=3e-3),
        }
        return Row(**row | values)

    return make


@pytest.fixture
def make_file():
    """A results file of a made-up machine."""

    def make(root: Path, name: str, rows, *, made_at: str = "2026-01-02T12:00:00+00:00", **parts) -> Path:
        device = parts.pop("device", "A Processor")
        head = {
            "made_at": datetime.fromisoformat(made_at).astimezone(UTC).isoformat(),
            "device": device,
            "machine": {
                "processor": {"model": "A Processor", "flags": ["avx512f"]},
                "num_usable_cores": 2,
                "memory_bytes": 2**34,
                "load_average": 0.25,
            },
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": None},
            "commit": {"name": "0123456789abcdef", "is_changed": False},
        }
        path = root / "benchmarks" / "results" / name
        write_results(path, head, rows=rows, **parts)
        assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1
        return path

    return make
