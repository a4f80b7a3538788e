"""Tables with a mapping of their columns: what is read, what is refused with file and line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import documents
from lorastudy.errors import DataError, StudyError
from lorastudy.imports.table import read_mapping, read_table

CSV = """rank,lr,seed,test_acc,n,loss,params
4,1e-3,0,0.5,200,1.25,1000
8,1e-3,0,0.75,200,,2000
8,1e-3,1,0.7,200,1.5,2000
"""
MAPPING = """
columns: {lora_rank: rank, learning_rate: lr, seed: seed, num_trainable_parameters: params}
constants: {base_model: org/model, target_modules: "q_proj,v_proj", method: lora}
metrics:
  accuracy: {column: test_acc, direction: higher, unit: share, num_items: n}
  loss: {column: loss, direction: lower, unit: nats}
tool: my trainer
"""


@pytest.fixture
def read(write):
    def read(text=CSV, mapping=MAPPING, name="sweep.csv"):
        table = read_table(
            write(name, text), suite_name="sweep", mapping=read_mapping(write("mapping.yaml", mapping))
        )
        return list(table.results)

    return read


def test_rows_become_results(read):
    first, second, third = read()
    assert first.settings == {
        "lora_rank": 4, "learning_rate": 0.001, "base_model": "org/model", "method": "lora",
        "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    assert [(s.metric, s.value, s.lower_is_better, s.num_items) for s in first.scores] == [
        ("accuracy", 0.5, False, 200),
        ("loss", 1.25, True, None),
    ]
    assert [score.metric for score in second.scores] == ["accuracy"], "an empty cell is an absent value"
    assert first.costs == {"num_trainable_parameters": 1000.0}
    assert [result.arm for result in (first, second, third)] == ["r4", "r8", "r8"]
    assert [result.seed for result in (first, second, third)] == [0, 0, 1]
    assert [result.location for result in (first, second, third)] == [
        "sweep.csv:2",
        "sweep.csv:3",
        "sweep.csv:4",
    ]
    assert first.tool == "my trainer"
    assert first.sources == {"base_model": "org/model"}


def test_a_parquet_table_is_read_alike(read, write, tmp_path):
    path = tmp_path / "sweep.parquet"
    columns = {"rank": [4, 8], "lr": [1e-3, 1e-3], "seed": [0, 0], "test_acc": [0.5, 0.75], "n": [200, 200],
               "loss": [1.25, None], "params": [1000, 2000]}  # fmt: skip
    pq.write_table(pa.table(columns), path)
    mapping = read_mapping(write("mapping.yaml", MAPPING))
    mine = read_table(path, suite_name="sweep", mapping=mapping).results
    theirs = read()[:2]
    assert [(r.settings, r.scores, r.costs, r.arm) for r in mine] == [
        (r.settings, r.scores, r.costs, r.arm) for r in theirs
    ]
    assert [result.id for result in mine] == [result.id for result in theirs]


def test_flags_say_the_same_as_the_file(read, write):
    flags = read_mapping(
        None,
        columns=["lora_rank=rank", "learning_rate=lr", "seed=seed", "num_trainable_parameters=params"],
        constants=["base_model=org/model", "target_modules=q_proj,v_proj", "method=lora"],
        metrics=["test_acc:higher:n", "loss:lower"],
    )
    mine = read_table(write("sweep.csv", CSV), suite_name="sweep", mapping=flags).results
    assert [result.settings for result in mine] == [result.settings for result in read()]
    assert mine[0].scores[0].num_items == 200
    assert mine[0].scores[0].unit == "share"


def test_flags_win_over_the_file(write):
    mapping = read_mapping(write("mapping.yaml", MAPPING), columns=["lora_rank=other"])
    assert mapping.columns["lora_rank"] == "other"
    assert mapping.columns["seed"] == "seed"


def test_every_bad_row_is_named_with_its_line(read):
    bad = CSV + "x,1e-3,0,0.5,200,1,1\n8,1e-3,-1,0.5,200,1,1\n8,1e-3,5,1.5,200,1,1\n8,1e-3,7,0.5,200,nan,1\n"
    with pytest.raises(DataError) as error:
        read(bad)
    lines = str(error.value).splitlines()
    assert [line.rpartition("sweep.csv:")[2].split(":")[0] for line in lines[:-1]] == [
        "5",
        "6",
        "7",
        "8",
    ]
    assert "lora_rank: must be a whole number" in lines[0]
    assert "seed: must be a whole number of at least 0" in lines[1]
    assert "test_acc: must be a share from 0 to 1, not '1.5'" in lines[2]
    assert "loss: must be a number" in lines[3]


def test_of_very_many_bad_rows_the_first_are_named(read):
    with pytest.raises(DataError) as error:
        read(CSV + "x,1e-3,0,0.5,200,1,1\n" * 50)
    lines = str(error.value).splitlines()
    assert len(lines) == 22
    assert lines[-2] == "... and 30 more"


def test_one_arm_and_seed_twice_is_a_mistake(read):
    with pytest.raises(DataError, match=r"sweep\.csv:5: arm r8 with seed 0 stands at sweep\.csv:3 already"):
        read(CSV + "8,1e-3,0,0.9,200,1,2000\n")


def test_a_second_row_of_an_arm_without_a_seed_is_refused_as_another_look_at_one_run(read):
    mapping = MAPPING.replace("seed: seed, ", "").replace(", seed: seed", "")
    with pytest.raises(
        DataError,
        match=r"sweep\.csv:4: arm r8 stands at sweep\.csv:3 already, and no seed .* not mapped: seed",
    ):
        read(CSV, mapping)
    results = read(CSV.rpartition("8,1e-3,1")[0], mapping)
    assert [result.seed for result in results] == [None, None]


@pytest.mark.parametrize("state", ["PRUNED", "RUNNING", "crashed"])
def test_a_run_that_did_not_finish_is_refused(read, state):
    text = f"rank,lr,seed,test_acc,n,loss,params,state\n4,1e-3,0,0.5,200,1.2,1,COMPLETE\n8,1e-3,0,0.6,200,1.1,1,{state}\n"
    with pytest.raises(DataError, match=rf"sweep\.csv:3: state is '{state}': a run that did not finish"):
        read(text)


@pytest.mark.parametrize("cell", ["diverged", "nan", "NaN", "inf", "-inf", ""])
def test_a_run_without_a_usable_first_metric_diverged(read, cell):
    first, second, _ = read(CSV.replace("0.75", cell))
    assert (first.is_diverged, second.is_diverged) == (False, True)
    assert [score.metric for score in second.scores] == []


def test_a_column_of_the_base_model_that_is_not_mapped_is_refused(read):
    text = CSV.replace("params\n", "model\n", 1)
    mapping = MAPPING.replace("base_model: org/model, ", "").replace(", num_trainable_parameters: params", "")
    with pytest.raises(
        DataError, match=r"'model' looks like the base model and is not mapped.*--column base_model=model"
    ):
        read(text, mapping)


def test_columns_that_were_not_used_are_named(write):
    mapping = read_mapping(write("mapping.yaml", MAPPING.replace(", num_trainable_parameters: params", "")))
    assert read_table(write("sweep.csv", CSV), suite_name="sweep", mapping=mapping).unused_columns == (
        "params",
    )


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            MAPPING.replace("lora_rank:", "rank:"),
            r"mapping\.yaml: rank: is not a word .*\(did you mean lora_rank\?\)",
        ),
        (MAPPING.replace("method:", "metod:"), r"metod: is not a word .*\(did you mean method\?\)"),
        (
            MAPPING.replace("direction: higher", "direction: up"),
            r"mapping\.yaml: metrics\.accuracy\.direction",
        ),
        (MAPPING.split("metrics:", maxsplit=1)[0], "no metric is named"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_a_mapping_that_cannot_be_meant(read, mapping, message):
    with pytest.raises(StudyError, match=message):
        read(CSV, mapping)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"columns": ["lora_rank"], "metrics": ["a:lower"]}, "--column lora_rank: write it as key=value"),
        ({"metrics": ["accuracy"]}, "--metric accuracy: write it as column:higher"),
        ({"metrics": ["accuracy:best"]}, "--metric accuracy:best"),
    ],
)
def test_flags_that_cannot_be_meant(flags, message):
    with pytest.raises(StudyError, match=message):
        read_mapping(None, **flags)


def test_a_column_that_is_not_there(read):
    with pytest.raises(DataError, match=r"sweep\.csv: has no column 'rnak' \(did you mean rank\?\)"):
        read(CSV, MAPPING.replace("lora_rank: rank", "lora_rank: rnak"))


def test_the_mapping_of_the_documents_is_one(write):
    (block,) = documents.blocks(documents.ROOT / "docs" / "importing.md", "yml")
    mapping = read_mapping(write("mapping.yaml", block.text))
    assert list(mapping.metrics) == ["accuracy", "loss"]
    assert mapping.columns["lora_rank"] == "rank"
