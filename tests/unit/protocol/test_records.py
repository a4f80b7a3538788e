"""What crosses the boundary comes out as it went in, or is refused."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.protocol.records import (
    ArmProfile,
    ArmStep,
    CheckpointProfile,
    DataSummary,
    Environment,
    Generation,
    Incident,
    MemoryPrediction,
    Outcome,
    Pack,
    PackProfile,
    PackStep,
    Record,
    RecordReader,
    RecordWriter,
    Score,
    TrivialScore,
    decode,
    encode,
)
from lorastudy.protocol.scoring import AddedScore, FailedRow
from lorastudy.suite.experiment import Experiment, Sources, canonical_json
from lorastudy.suite.settings import Settings

FINITE = st.floats(allow_nan=False, allow_infinity=False)
BYTES = st.none() | st.integers(0, 2**63 - 1)
COUNT = st.integers(0, 2**40)
# What stands in a suite file or comes out of a model: any text that UTF-8 can write.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ARM_STEP = st.builds(
    ArmStep,
    experiment_id=TEXT,
    loss=st.none() | FINITE,
    learning_rate=FINITE,
    grad_norm=st.none() | FINITE,
)
RECORDS: dict[type[Any], st.SearchStrategy[Any]] = {
    Environment: st.builds(
        Environment,
        **dict.fromkeys(("python", "torch", "transformers", "peft", "bitsandbytes", "lorastudy"), TEXT),
        device=TEXT,
        device_name=TEXT,
        num_threads=COUNT,
    ),
    DataSummary: st.builds(
        DataSummary,
        split=TEXT,
        format=TEXT,
        num_rows=COUNT,
        num_refused_rows=COUNT,
        num_truncated_rows=COUNT,
        num_tokens=COUNT,
        num_completion_tokens=COUNT,
        num_duplicate_rows=st.none() | COUNT,
        num_leaked_rows=st.none() | COUNT,
        num_texts=st.none() | COUNT,
        unused_columns=st.none() | st.lists(TEXT, max_size=3).map(tuple),
        unseen_fields=st.none() | st.lists(TEXT, max_size=3).map(tuple),
    ),
    PackStep: st.builds(
        PackStep,
        step=COUNT,
        num_steps=COUNT,
        num_tokens=COUNT,
        num_completion_tokens=COUNT,
        seconds=FINITE,
        arms=st.lists(ARM_STEP, max_size=3).map(tuple),
    ),
    Score: st.builds(
        Score,
        experiment_id=TEXT,
        split=TEXT,
        metric=TEXT,
        version=COUNT,
        unit=TEXT,
        value=FINITE,
        items=st.lists(FINITE, max_size=4).map(tuple),
        weights=st.none() | st.lists(COUNT, max_size=4).map(tuple),
    ),
    TrivialScore: st.builds(
        TrivialScore,
        predictor=st.sampled_from(["constant", "frequencies", "unigram"]),
        split=TEXT,
        metric=TEXT,
        version=COUNT,
        unit=TEXT,
        value=FINITE,
        items=st.lists(FINITE, max_size=4).map(tuple),
        weights=st.none() | st.lists(COUNT, max_size=4).map(tuple),
        answer=st.none() | TEXT,
    ),
    ArmProfile: st.builds(
        ArmProfile,
        experiment_id=TEXT,
        num_trainable_parameters=COUNT,
        num_total_parameters=COUNT,
        adapter_bytes=COUNT,
        memory_kind=st.sampled_from(["cuda_allocated", "cpu_tensors"]),
        peak_memory_bytes=BYTES,
        step_seconds=st.none() | FINITE,
        tokens_per_second=st.none() | FINITE,
        num_timed_steps=st.none() | COUNT,
        step_quartile_distance_seconds=st.none() | FINITE,
        step_times_apart=st.none() | FINITE,
    ),
    PackProfile: st.builds(
        PackProfile,
        engine=TEXT,
        num_arms=COUNT,
        memory_kind=st.sampled_from(["cuda_allocated", "cpu_resident"]),
        peak_memory_bytes=BYTES,
        median_step_seconds=st.none() | FINITE,
        tokens_per_second=st.none() | FINITE,
        load_seconds=FINITE,
        train_seconds=FINITE,
        eval_seconds=FINITE,
    ),
    MemoryPrediction: st.builds(
        MemoryPrediction,
        experiment_id=TEXT,
        memory_kind=st.sampled_from(["cuda_allocated", "cpu_tensors"]),
        step_seconds=st.none() | FINITE,
        **dict.fromkeys(
            (
                "num_tokens",
                "num_labels",
                "alone_bytes",
                "pack_bytes",
                "base_weights",
                "quantisation_constants",
                "adapters",
                "gradients",
                "optimizer",
                "activations",
                "loss",
                "workspace",
                "allocator_slack",
            ),
            COUNT,
        ),
    ),
    CheckpointProfile: st.builds(CheckpointProfile, num_checkpoints=COUNT, last_bytes=COUNT, seconds=FINITE),
    Incident: st.builds(
        Incident,
        kind=st.sampled_from(["resumed", "not_resumed", "out_of_memory", "checkpoint_damaged"]),
        message=TEXT,
        step=st.none() | COUNT,
    ),
    Generation: st.builds(Generation, experiment_id=TEXT, prompt=TEXT, reference=TEXT, answer=TEXT),
    Outcome: st.builds(
        Outcome,
        experiment_id=TEXT,
        status=st.sampled_from(["completed", "failed", "stopped"]),
        failure_kind=st.sampled_from([None, "user", "diverged", "out_of_memory", "crashed", "error"]),
        message=st.none() | TEXT,
        traceback=st.none() | TEXT,
        step=st.none() | COUNT,
        adapter_path=st.none() | TEXT,
    ),
    AddedScore: st.builds(
        AddedScore,
        experiment_id=TEXT,
        attempt=COUNT,
        split=TEXT,
        metric=TEXT,
        version=COUNT,
        unit=TEXT,
        value=st.none() | FINITE,
        items=st.lists(st.none() | FINITE).map(tuple),
        weights=st.none() | st.lists(COUNT).map(tuple),
        failed_rows=st.lists(st.builds(FailedRow, where=TEXT, message=TEXT)).map(tuple),
        source_sha256=st.none() | TEXT,
    ),
}
SAID = [Generation(experiment_id="e", prompt=f"{number}é\n", reference="", answer="") for number in range(3)]


def test_every_kind_of_record_is_tried() -> None:
    assert set(RECORDS) == set(Record.__args__)


@given(record=st.one_of(*RECORDS.values()))
def test_a_record_comes_out_as_it_went_in(record: Record) -> None:
    line = encode(record)
    assert "\n" not in line
    assert decode(line) == record


@given(record=st.one_of(*RECORDS.values()), data=st.data())
def test_a_changed_character_is_never_taken_for_another_record(record: Record, data: st.DataObject) -> None:
    line = encode(record)
    position = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.characters(codec="ascii", categories=["L", "N", "P", "S"]))
    damaged = line[:position] + other + line[position + 1 :]
    try:
        read = decode(damaged)
    except ValueError:
        return
    assert read == record  # the character was the same, or the damage says the same: `1e5` for `1E5`


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    score = Score(
        experiment_id="e", split="eval", metric="loss", version=1, unit="", value=value, items=(1.0,)
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(score)
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(dataclasses.replace(score, value=0.0, items=(value,)))


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "7", '{"type": "Nothing", "body": {}}', '{"type": "Outcome"}']
)
def test_what_is_no_record_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        decode(line)


def test_a_failure_kind_of_an_earlier_version_is_read_under_its_present_name() -> None:
    outcome = Outcome(experiment_id="a", status="stopped", failure_kind="pruned", message="behind", step=2)
    body = {**dataclasses.asdict(outcome), "failure_kind": "outraced"}
    checksum = hashlib.sha256(canonical_json(["Outcome", body]).encode()).hexdigest()[:16]
    assert decode(json.dumps({"sha256": checksum, "type": "Outcome", "body": body})) == outcome


def test_a_reader_takes_each_record_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    reader = RecordReader(path)
    assert list(reader.read_new()) == []  # there is no file yet
    writer = RecordWriter(path)
    writer.write(SAID[0])
    assert list(reader.read_new()) == SAID[:1]
    writer.write(SAID[1])
    line = encode(SAID[2]) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line[:40])
        file.flush()
        assert list(reader.read_new()) == SAID[1:2]
        assert list(reader.read_new()) == []
        assert reader.has_torn_end()
        file.write(line[40:])
    assert list(reader.read_new()) == SAID[2:]
    assert not reader.has_torn_end()
    writer.close()


def test_a_whole_line_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(encode(SAID[0]).replace("0", "1") + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="checksum"):
        list(RecordReader(path).read_new())


def test_a_writer_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for record in SAID:
        writer = RecordWriter(path)
        writer.write(record)
        writer.close()
    assert list(RecordReader(path).read_new()) == SAID


def test_a_pack_comes_out_as_it_went_in(tmp_path: Path) -> None:
    experiments = tuple(
        Experiment(
            name=f"r{rank}",
            arm=f"r{rank}",
            experiment_type="rank_ablation",
            seed=rank,
            settings=Settings(lora_rank=rank, target_modules=("q_proj",), layers_to_transform=(0, 2)),
            sources=Sources(base_model="sha256:1", dataset="2", eval_dataset="3"),
        )
        for rank in (1, 2)
    )
    pack = Pack(id="pack-1", attempt=3, engine="auto", experiments=experiments)
    pack.write(tmp_path)
    read = Pack.read(tmp_path)
    assert read == pack
    assert [experiment.id for experiment in read.experiments] == [experiment.id for experiment in experiments]


def test_a_pack_of_another_format_is_not_read(tmp_path: Path) -> None:
    Pack(id="pack-1", attempt=1, engine="auto", experiments=()).write(tmp_path)
    body = json.loads((tmp_path / "pack.json").read_text())
    (tmp_path / "pack.json").write_text(json.dumps({**body, "format": 0}))
    with pytest.raises(AssertionError):
        Pack.read(tmp_path)
