"""`make notebook`: runs docs/notebook.ipynb from front to back and keeps what it shows."""

from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path("docs", "notebook.ipynb")
_CELL_SECONDS = 600


def run(notebook: Path, repository: Path) -> nbformat.NotebookNode:
    """Returns an executed notebook, without times and counters, which differ every time.

    Args:
        notebook: the file; it is not written.
        repository: where it runs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    node = nbformat.read(notebook, as_version=4)
    NotebookClient(
        node,
        timeout=_CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(repository)}},
    ).execute()
    node.metadata.language_info = {"name": "python"}
    for cell in node.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # the same picture once more
    return node


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=NOTEBOOK,
    show_default=True,
    help="Where the executed notebook goes.",
)
def main(output: Path) -> None:
    """Runs the notebook."""
    nbformat.write(run(NOTEBOOK, Path.cwd()), output)
    click.echo(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
