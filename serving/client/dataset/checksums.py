"""SHA256SUMS: one line per file, as `sha256sum --check` reads it."""

import hashlib
from pathlib import Path

from serving.client.dataset.unfinished import FOLDER as UNFINISHED
from serving.client.dataset.whole_files import whole_file

NAME = "SHA256SUMS"


def data_files(output: Path) -> list[Path]:
    """Returns every file in the folders of a data set, sorted by its path."""
    folders = [path for path in output.iterdir() if path.is_dir() and path.name != UNFINISHED]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def write_sums(output: Path, files: list[Path]) -> str:
    """Writes the sums of all files and returns the sha256 of that list."""
    lines = []
    for path in files:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(output).as_posix()}\n")
    content = "".join(lines).encode()
    with whole_file(output / NAME) as stream:
        stream.write(content)
    return hashlib.sha256(content).hexdigest()
