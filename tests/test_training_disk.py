"""Files are whole or not there, and a full disk is one clear line."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from training.disk import DiskFull, free_bytes, room_for, write_atomically

FULL = Path("/dev/full")  # every write to it fails for want of room, as on a full disk
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no such device")


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "it"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in path.parent.iterdir()] == ["it"]


@needs_full_device
def test_on_a_full_disk_the_old_file_stays_and_the_partial_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old")
    (tmp_path / "it.partial").symlink_to(FULL)
    with pytest.raises(DiskFull) as refused:
        write_atomically(path, b"x" * 12_345)
    message = str(refused.value)
    assert message.startswith(f"{path}: no room for its 12,345 bytes (No space left on device; ")
    assert "bytes are free). Make room and start again, with --resume" in message
    assert "\n" not in message
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


def test_beyond_the_limit_on_file_sizes_nothing_is_left_behind(
    repository: Path, tmp_path: Path
) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from training import disk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    disk.write_atomically(Path(sys.argv[1]), b'x' * 10_001)\n"
        "except disk.DiskFull as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "it")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tmp_path / 'it'}: no room for its 10,001 bytes (File too large; " in done.stdout
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000  # that was another process


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_is_named_by_the_file(tmp_path: Path, number: int) -> None:
    named = pytest.raises(DiskFull, match=f"^{tmp_path / 'it'}: no room .*{os.strerror(number)}")
    with named, room_for(tmp_path / "it"):
        raise OSError(number, os.strerror(number))


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room_for(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_the_file_that_did_not_fit_first_is_the_one_that_is_named(tmp_path: Path) -> None:
    named = pytest.raises(DiskFull, match="^inner: no room for its 5 bytes")
    with named, room_for(tmp_path), room_for(Path("inner"), 5):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_room_is_looked_up_where_a_folder_would_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there" / "yet") > 0
