"""The tree of values against ruamel's own safe loader, and where its values stand."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lorastudy.suite.yaml_reading import (
    Node,
    Place,
    Problems,
    node_from_value,
    plain,
    read_yaml,
    resolve_scalar,
)

# Without the line breaks of Unicode and without the question mark, which ruamel itself writes as it does not read
# them: the key "?;" comes out bare, as a complex key.
TEXT = st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029?")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(TEXT, max_size=8)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TEXT, max_size=5), inner, max_size=4),
    max_leaves=12,
)


def read(path: Path, text: str) -> Node:
    path.write_text(text, encoding="utf-8")
    problems = Problems()
    node = read_yaml(path, problems)
    problems.raise_if_any()
    assert node is not None
    return node


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_what_ruamel_writes_is_read_as_ruamel_reads_it(tmp_path: Path, tree: Any) -> None:
    yaml = YAML(typ="safe", pure=True)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    assert plain(read(tmp_path / "t.yaml", stream.getvalue())) == yaml.load(stream.getvalue()) == tree


# The core schema of YAML 1.2, section 10.3.2; in the second group, what YAML 1.1 reads otherwise.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2E3", 2e3), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf), ("+3", 3), ("0o17", 15),
        ("0x1F", 31), ("", None), ("~", None), ("NULL", None), ("True", True), ("FALSE", False),
        ("off", "off"), ("no", "no"), ("y", "y"), ("017", 17), ("1_000", "1_000"), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("4bit", "4bit"), ("2r", "2r"), ("nUlL", "nUlL"), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    resolved = resolve_scalar(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_every_key_and_value_knows_its_place(tmp_path: Path) -> None:
    root = read(tmp_path / "p.yaml", "a: 1\nb:\n  - x\n  - {c: 'two'}\n")
    assert isinstance(root.value, dict)
    b = root.value["b"]
    assert isinstance(b.value, tuple)
    entry = b.value[1]
    assert isinstance(entry.value, dict)
    c = entry.value["c"]
    places = [root.value["a"].place, b.key_place, b.value[0].place, c.key_place, c.place]
    assert [(place.line, place.column) for place in places] == [(1, 4), (2, 1), (3, 5), (4, 6), (4, 9)]


def test_quotes_keep_text_text(tmp_path: Path) -> None:
    assert plain(read(tmp_path / "q.yaml", "- 1\n- '1'\n- \"1e-4\"\n- |\n  1\n")) == [1, "1", "1e-4", "1\n"]


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    node = read_yaml(tmp_path / "w.yaml", Problems())
    assert node is not None
    assert plain(node) == {"a": 1, "b": 2}


def test_values_of_python_make_the_same_tree() -> None:
    value = {"a": [1, (2.0, None)], "b": Path("x")}
    assert plain(node_from_value(value, Place(source="flags"))) == {"a": [1, [2.0, None]], "b": "x"}
