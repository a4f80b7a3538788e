"""Links and dots that lead out of a folder."""

import pytest

from lorastudy.errors import StudyError
from lorastudy.protocol.run_folder import files_alone, inside


def test_what_lies_in_a_folder_is_given_back(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path in (tmp_path / "a/b", tmp_path / "link/x", tmp_path / "a/../b"):
        assert inside(tmp_path, path) == path
    assert inside(tmp_path / "link", tmp_path / "link/x")  # a folder that is itself a link may lie anywhere


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "out/x", "dangling/x"])
def test_what_leads_out_is_refused(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        StudyError, match=r"leads out of .*folder, to .*; remove the link, or name another folder"
    ):
        inside(folder, folder / name)


def test_a_folder_with_a_link_in_it_is_not_copied(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    assert files_alone(tmp_path) == tmp_path
    (tmp_path / "a/link").symlink_to("/etc/hostname")
    with pytest.raises(StudyError, match="a/link: is a link; an adapter holds files alone"):
        files_alone(tmp_path)
