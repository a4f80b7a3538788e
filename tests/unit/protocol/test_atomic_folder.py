"""A folder is whole or not there; every byte of it is checked before it is used."""

import os
from pathlib import Path

import pytest

from lorastudy.protocol import files as sealed
from lorastudy.protocol.files import MANIFEST_NAME, DamagedError, read_sealed_folder, write_sealed_folder

FILES = {"one.json": b'{"a": 1}', "two.bin": bytes(range(256)), "empty": b""}


def test_what_was_sealed_comes_back(tmp_path: Path) -> None:
    write_sealed_folder(tmp_path / "folder", FILES)
    assert read_sealed_folder(tmp_path / "folder") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def is_found(folder: Path) -> bool:
    """Whether damage is found and its folder named; if it is not, nothing may have changed."""
    try:
        assert read_sealed_folder(folder) == FILES
    except DamagedError as error:
        return str(folder) in str(error)
    return False


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_every_single_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    write_sealed_folder(folder, FILES)
    whole = (folder / name).read_bytes()
    num_found = 0
    for bit in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(content)
        num_found += is_found(folder)
    # White space in the manifest may become other white space; nothing else may change unseen.
    assert num_found >= (0.9 if name == MANIFEST_NAME else 1) * len(range(0, 8 * len(whole), 7))


@pytest.mark.parametrize("name", ["one.json", "two.bin", MANIFEST_NAME])
def test_a_torn_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    write_sealed_folder(folder, FILES)
    content = (folder / name).read_bytes()
    for length in range(len(content)):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(DamagedError, match=name):
            read_sealed_folder(folder)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match=f"{name}: No such file"):
        read_sealed_folder(folder)


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sealed.os if call == "fsync" else sealed.Path, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_sealed_folder(tmp_path / "folder", FILES)
    assert list(tmp_path.iterdir()) == []
    write_sealed_folder(tmp_path / "folder", FILES)


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder of their names first, then the rename, then the folder of that name."""
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda *given: (order.append("rename"), rename(*given))[1])
    write_sealed_folder(tmp_path / "folder", FILES)
    assert order == ["sync"] * (len(FILES) + 2) + ["rename", "sync"]
