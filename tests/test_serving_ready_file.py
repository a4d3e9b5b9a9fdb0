"""The ready file is there while a server is, whole, and never of another one."""

import json
from pathlib import Path

import pytest

from serving.ready_file import ReadyFile, ReadyFileError


def test_it_is_there_while_the_server_is_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    with ReadyFile(path).written({"pid": 7}):
        assert json.loads(path.read_text()) == {"pid": 7}
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_has_left_is_gone_before_the_next_one_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.write_text("{}")
    ready_file = ReadyFile(path)
    assert not path.exists()
    with ready_file.written({"pid": 7}):
        assert json.loads(path.read_text()) == {"pid": 7}


def test_somebody_may_have_taken_it_away(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    with ReadyFile(path).written({}):
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_is_said_in_one_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "ready"
    with pytest.raises(ReadyFileError) as caught:
        ReadyFile(path)
    assert str(caught.value) == f"--ready-file {path}: no such file or directory"


def test_what_can_no_longer_be_written_is_said_in_one_line_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    ready_file = ReadyFile(folder / "ready")
    folder.rmdir()
    with pytest.raises(ReadyFileError, match="no such file"), ready_file.written({}):
        pass
