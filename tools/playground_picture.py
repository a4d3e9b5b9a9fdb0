"""Takes the picture of the playground for the README, in Chromium, of a server that runs.

python tools/playground_picture.py --url http://127.0.0.1:8080 --output docs/images/playground.png
"""

import shutil
from pathlib import Path

import click
from playwright.sync_api import ViewportSize, sync_playwright

SETTING = "#labels=2.0.2.6&count=4&seed=12"
SIZE: ViewportSize = {"width": 1100, "height": 800}


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/images/playground.png"),
    show_default=True,
)
def main(url: str, output: Path) -> None:
    """Writes the picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise click.ClickException("there is no chromium; Debian's package has that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce", device_scale_factor=1.5)
        page.goto(f"{url.rstrip('/')}/{SETTING}")
        page.get_by_role("button", name="Save PNG").wait_for()
        page.screenshot(path=output)
        browser.close()
    click.echo(str(output))


if __name__ == "__main__":
    main()
