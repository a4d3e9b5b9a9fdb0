"""`make docs-pictures`: measures and draws every picture, or those that are named."""

from pathlib import Path

import click

from tools.docs_pictures.gallery import PICTURES
from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import FOLDER, save


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([picture.name for picture in PICTURES]))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True
)
def main(names: tuple[str, ...], output: Path) -> None:
    """Draws the pictures of docs/how-it-works.md from models/mnist."""
    model = Model()
    chosen = [picture for picture in PICTURES if not names or picture.name in names]
    with click.progressbar(chosen, item_show_func=lambda each: each.name if each else None) as bar:
        for picture in bar:
            save(picture, picture.measure(model), output)
    for picture in chosen:
        path = output / f"{picture.name}.png"
        click.echo(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(prog_name="make docs-pictures")
