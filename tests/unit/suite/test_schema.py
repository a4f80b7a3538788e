"""The reference and the editor's schema are made from the types and agree with the loader."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lorastudy.suite.levels import FOREIGN_NAMES
from lorastudy.suite.schema import json_schema, main, reference
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import EntryKeys, SuiteKeys
from lorastudy.suite.suite_file import load_suite

REPOSITORY = Path(__file__).parents[3]


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert main(["--check", str(REPOSITORY / "docs/suite-file.md")]) == 0


def test_check_tells_a_stale_or_missing_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["--check", str(page)]) == 1
    assert main(["--write", str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    page.write_text(page.read_text() + "typed by hand\n")
    assert main(["--check", str(page)]) == 1
    assert "is not up to date" in capsys.readouterr().out


def test_every_key_has_one_row_with_a_description() -> None:
    for model in (Settings, EntryKeys, SuiteKeys):
        for key in model.model_fields:
            rows = re.findall(rf"^\| `{key}` \| (.+) \| (.*) \| (.+) \|$", reference(), flags=re.MULTILINE)
            assert len(rows) == 1, key
    assert "| `lora_rank` | a whole number from 1 to 4096 | `16` | peft's `r`. |" in reference()


def test_the_examples_of_the_page_load(folder: Path, write: Callable[[str], Path]) -> None:
    (folder / "data").mkdir()
    (folder / "data/alpaca_1000_sample.jsonl").write_text("{}\n")
    example, factors = re.findall(r"```yaml\n(.*?)```", reference(), flags=re.DOTALL)
    assert len(load_suite(write(example)).arms) == 4
    assert len(load_suite(write(factors)).arms) == 12


def test_names_of_other_tools_lead_to_keys_and_are_none_themselves() -> None:
    known = {*Settings.model_fields, *EntryKeys.model_fields, *SuiteKeys.model_fields}
    assert set(FOREIGN_NAMES.values()) <= known
    assert not known & FOREIGN_NAMES.keys()


def test_the_schema_has_every_key_where_it_may_stand(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json_schema()
    top = {*Settings.model_fields, *SuiteKeys.model_fields, "seeds"}
    assert schema["properties"].keys() == top
    assert schema["properties"]["experiments"]["items"]["properties"].keys() == {
        *Settings.model_fields,
        "name",
        "seeds",
    }
    assert schema["properties"]["factors"]["properties"].keys() == set(Settings.model_fields)
    assert [choice.get("type") for choice in schema["properties"]["learning_rate"]["anyOf"]] == [
        "number",
        "string",
        "array",
    ]
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == schema
