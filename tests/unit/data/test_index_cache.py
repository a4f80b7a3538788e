"""The kept index is the one that a pass over the rows makes, and nothing else is ever taken for it."""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorastudy.data import load, row_index
from lorastudy.data.load import StudyData, train_and_eval
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings

NUM_ROWS = 60


def rows(*, first: str = "q0") -> list[dict[str, Any]]:
    """Pairs with copies, a system prompt, a switch, a column that is not used, and rows that ask nothing."""
    return [
        {
            "prompt": first if number == 0 else "" if number % 13 == 5 else f"q{number % 50}",
            "completion": f"a{number % 50}",
            "system": "Be brief." if number % 4 else "",
            "train": int(number % 7 != 3),
            "url": f"http://{number}",
        }
        for number in range(NUM_ROWS)
    ]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, in which small files are kept too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(row_index, "MIN_BYTES", 0)
    monkeypatch.setattr(row_index, "MIN_ROWS", 0)
    return tmp_path / "cache" / "lorastudy" / "rows"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that a pass was made over to index them."""
    made = []
    indexed = load._indexed

    def counted(source: Any, path: str, **options: Any) -> Any:
        made.append(path)
        return indexed(source, path, **options)

    monkeypatch.setattr(load, "_indexed", counted)
    return made


def in_a_new_process(path: str, **values: Any) -> StudyData:
    """As a process reads it that has read nothing before, once the clock has ticked since the file was written."""
    time.sleep(0.025)
    load._data_set.cache_clear()
    return train_and_eval(settings(path, **values))


def settings(path: str, **values: Any) -> Settings:
    return Settings(dataset_path=path, eval_fraction=0.3, test_fraction=0.2, **values)


def without_cache(path: str, **values: Any) -> StudyData:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "index_key", lambda path, *, max_samples: None)
        return in_a_new_process(path, **values)


def all_of(study: StudyData) -> Any:
    """Everything that a study's data say, as values that can be compared."""
    parts = [part for part in (study.train, study.held_out, study.test, study.forgetting) if part is not None]
    return (
        [(part.read(), list(part.numbers), part.dataset.format, part.style) for part in parts],
        [[bytes(column) for column in part.dataset.index.columns()] for part in parts],
        [list(part.hashes(of)) for part in parts for of in ("contents", "prompts")],
        (
            study.num_duplicates,
            study.num_leaked,
            study.num_known_prompts,
            study.split_by,
            study.num_empty_prompts,
        ),
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.parquet"])
def test_a_kept_index_gives_the_same_data_as_a_pass(name: str, tmp_path: Path, passes: list[str]):
    path = str(tmp_path / name)
    write_as(name, path)
    first = all_of(in_a_new_process(path))
    assert passes == [path]
    assert all_of(in_a_new_process(path)) == first == all_of(without_cache(path))
    assert passes == [path, path]  # the last one, without a cache


def write_as(name: str, path: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows()), path)
    elif name.endswith(".gz"):
        Path(path).write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".csv"):
        header = list(rows()[0])
        body = [",".join(str(row[column]) for column in header) for row in rows()]
        Path(path).write_text("\n".join([",".join(header), *body]))
    else:
        Path(path).write_text(json.dumps(rows()) if name.endswith(".json") else lines)


def test_it_follows_from_content_ending_number_of_rows_and_code(
    write: Callable[[str, object], str], passes: list[str], monkeypatch: pytest.MonkeyPatch
):
    path = write("a.jsonl", rows())
    in_a_new_process(path)
    in_a_new_process(write("same.jsonl", rows()))
    assert len(passes) == 1
    in_a_new_process(path, max_train_samples=40)
    in_a_new_process(write("b.jsonl", rows(first="q99")))
    in_a_new_process(write("a.json", Path(path).read_text()))
    assert len(passes) == 4
    monkeypatch.setattr(row_index, "source_digest", lambda *patterns: "other code")
    in_a_new_process(path)
    monkeypatch.setattr(row_index, "DATA_VERSION", 99)
    in_a_new_process(path)
    assert len(passes) == 6


def damaged(content: bytes) -> Iterator[bytes]:
    """A kept file as a fault may leave it: a changed byte anywhere, cut off, longer, empty, no index at all."""
    for place in (0, 40, len(content) // 3, len(content) // 2, len(content) - 1):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    yield from (content[:10], content[:100], content[:-1], content + b"\0", b"", b"{}\n", b"\xff" * 400)


def test_a_damaged_short_or_foreign_file_is_never_trusted(
    write: Callable[[str, object], str], folder: Path, passes: list[str]
):
    path = write("a.jsonl", rows())
    expected = all_of(in_a_new_process(path))
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    faults = list(damaged(content))
    in_a_new_process(write("b.jsonl", rows(first="q99")))
    (other,) = set(folder.iterdir()) - {kept}
    faults.append(other.read_bytes())  # whole, and of another file
    passes.clear()
    for fault in faults:
        kept.write_bytes(fault)
        assert all_of(in_a_new_process(path)) == expected
        assert kept.read_bytes() == content  # made again, and kept
    assert passes == [path] * len(faults)


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_a_file_of_the_same_size_and_time_is_another_file(
    replaces: bool, waits: bool, write: Callable[[str, object], str]
):
    """Within one process too, which knows what it has read by the state of the file."""
    path = write("a.jsonl", rows())
    time.sleep(0.03 if waits else 0)
    state, before = Path(path).stat(), train_and_eval(settings(path))
    other = write("b.jsonl" if replaces else "a.jsonl", rows(first="z0"))
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    Path(other).replace(path)
    now = Path(path).stat()
    assert (now.st_size, now.st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    after = train_and_eval(settings(path))
    assert all_of(after) == all_of(without_cache(path))
    assert {
        row.row.values["prompt"] for part in (after.train, after.held_out, after.test) for row in part
    } >= {"z0"}
    assert before.train.dataset is not after.train.dataset


def test_rows_of_a_file_that_changed_since_it_was_indexed_are_refused(write: Callable[[str, object], str]):
    study = in_a_new_process(write("a.jsonl", rows()))
    write("a.jsonl", list(reversed(rows())))
    with pytest.raises(DataError, match="has changed since it was first read"):
        study.train.read()


def test_an_index_of_a_file_that_changed_meanwhile_is_not_kept(
    write: Callable[[str, object], str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write("a.jsonl", rows())
    indexed = load._indexed

    def written_meanwhile(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.03)
        write("a.jsonl", rows(first="z0"))
        return indexed(*arguments, **options)

    monkeypatch.setattr(load, "_indexed", written_meanwhile)
    in_a_new_process(path)
    assert not folder.exists()


def test_small_files_and_few_rows_are_not_kept(
    write: Callable[[str, object], str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write("a.jsonl", rows())
    monkeypatch.setattr(row_index, "MIN_ROWS", 41)
    in_a_new_process(path, max_train_samples=40)
    monkeypatch.setattr(row_index, "MIN_BYTES", Path(path).stat().st_size + 1)
    in_a_new_process(path)
    assert not folder.exists()


def test_what_was_not_used_for_the_longest_time_makes_room(
    write: Callable[[str, object], str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [write(f"{name}.jsonl", rows(first=f"q10{number}")) for number, name in enumerate("abc")]
    kept = []
    for number, path in enumerate(paths[:2]):
        in_a_new_process(path)
        (new,) = set(folder.iterdir()) - set(kept)
        os.utime(new, (number, number))
        kept.append(new)
    in_a_new_process(paths[0])  # so that the second is older now
    monkeypatch.setattr(row_index, "MAX_KEPT_BYTES", 2 * kept[0].stat().st_size + 10)
    in_a_new_process(paths[2])
    assert kept[0].exists()
    assert not kept[1].exists()
    assert len(list(folder.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_nothing(
    write: Callable[[str, object], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write("a.jsonl", rows())
    assert all_of(in_a_new_process(path)) == all_of(without_cache(path))


def test_a_large_file_is_hashed_once_for_its_fingerprint_and_its_index(
    write: Callable[[str, object], str], monkeypatch: pytest.MonkeyPatch
):
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: hashed.append(file.name) or real(file, name)
    )
    path = write("a.jsonl", rows())
    time.sleep(0.025)
    first = dataset_fingerprint(path)
    in_a_new_process(path)
    in_a_new_process(path)
    assert len(hashed) == 1
    assert first == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    write("a.jsonl", rows(first="another question"))
    in_a_new_process(path)
    assert dataset_fingerprint(path) == hashlib.sha256(Path(path).read_bytes()).hexdigest() != first
    assert len(hashed) > 1
