"""``python -m evaluation --model models/mnist``: how good are the images of a bundle?

Measures label accuracy and Frechet distance at each --setting, beside the same numbers of real test
images.
"""

import json
import re
import sys
from pathlib import Path

import click

from evaluation.report import Evaluator, Setting, to_json, to_markdown
from evaluation.sampling import ImageSource
from serving.bundle import MANIFEST_NAME, BundleError, load_bundle, write_manifest
from serving.network import ProviderError
from training.datasets import DATASETS, DatasetError, load_dataset


def parse_setting(text: str) -> Setting:
    """SAMPLER:NUM_STEPS[:GUIDANCE], as in ddpm:10 or ddim:20:1.5."""
    match = re.fullmatch(r"(\w+):(\d+)(?::([\d.]+))?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not SAMPLER:NUM_STEPS[:GUIDANCE]")
    sampler, num_steps, guidance_scale = match.groups(default="1")
    return Setting(sampler, int(num_steps), float(guidance_scale))


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"),
              show_default=True, help="Bundle.")  # fmt: skip
@click.option("--setting", "settings", multiple=True,
              help="SAMPLER:STEPS[:GUIDANCE], repeatable; unset: the bundle's.")  # fmt: skip
@click.option("--num-images", default=2000, show_default=True, help="N, 100 .. 10000.")
@click.option("--seed", default=1000, show_default=True, help="Label y is drawn with seed + y.")
@click.option("--dataset", type=click.Choice(sorted(DATASETS)), default="mnist", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory with the IDX files.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of Markdown.")
@click.option("--update-manifest", is_flag=True,
              help="Write the numbers into the bundle's manifest.")  # fmt: skip
def main(
    model: Path,
    settings: tuple[str, ...],
    num_images: int,
    seed: int,
    dataset: str,
    data_dir: Path | None,
    provider: str,
    as_json: bool,
    update_manifest: bool,
) -> None:
    """Command line."""
    try:
        source = ImageSource(model, provider)
        defaults = source.manifest.defaults
        wanted = [parse_setting(text) for text in settings] or [
            Setting(defaults.sampler, defaults.num_steps, defaults.guidance_scale)
        ]
        evaluator = Evaluator(load_dataset(dataset, data_dir), num_images)
        rows = [evaluator.floor]
        for setting in wanted:
            rows.append(evaluator.measure(source, setting, seed))
            click.echo(
                f"{setting.sampler} {setting.num_steps} {setting.guidance_scale:g}: "
                f"labels {rows[-1].label_accuracy:.2%}, ratio {rows[-1].frechet_ratio:.2f}",
                err=True,
            )
    except (BundleError, DatasetError, ProviderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    quality = to_json(evaluator, rows, seed)
    click.echo(json.dumps(quality, indent=2) if as_json else to_markdown(rows))
    if update_manifest:
        manifest = load_bundle(model).manifest
        write_manifest(manifest.model_copy(update={"quality": quality}), model)
        click.echo(f"wrote {model / MANIFEST_NAME}", err=True)


if __name__ == "__main__":
    sys.exit(main())
