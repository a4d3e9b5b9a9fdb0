"""Sweeps the numbers of ddim_stochastic (the constants in diffusion/samplers.py) on a bundle.

Every combination of the values given is drawn by the engine and judged as `python -m evaluation`
does; what was measured is kept in --work-dir. Values have commas between. 2 x 2 combinations:

    python tools/sweep_sampler.py --guidance 1.5 --eta 0.7,0.8 --guided 0.42-0.64,0.5-0.7

The timesteps of other samplers are swept too: --eta 1 is DDPM, --eta 0 DDIM, and --solver dpmpp_2m
puts DPM-Solver++(2M), which has no eta, in their place:

    python tools/sweep_sampler.py --solver ddim,dpmpp_2m --eta 0 --first 1 --last 0 --power 1,1.5
"""

import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import click

from diffusion import samplers
from evaluation.__main__ import parse_numbers
from evaluation.judge import load_judges
from evaluation.markdown import table
from evaluation.measuring import Evaluator
from evaluation.sampling import ImageSource
from evaluation.setting import Setting
from evaluation.store import Store
from training.config import require
from training.datasets import load_dataset

SAMPLER = "ddim_stochastic"
DDIM, DPMPP_2M = "ddim", "dpmpp_2m"
SOLVERS = {
    DDIM: samplers.ddim_coefficients,
    DPMPP_2M: lambda abar, abar_next, _eta: samplers.dpmpp_2m_coefficients(abar, abar_next),
}
HEAD = ["solver", "steps", "eta", "levels", "guidance", "interval", "rows", "labels", "ratio",
        "recall", "coverage"]  # fmt: skip


class Shape(NamedTuple):
    """Solver, and the sampler's numbers as the constants in diffusion/samplers.py name them."""

    solver: str
    eta: float
    first: float
    last: float
    power: float
    guided: tuple[float, float]


def use(shape: Shape) -> None:
    """Give the sampler these numbers in this process."""
    numbers = shape._asdict()
    changed = {"ddim_coefficients": SOLVERS[numbers.pop("solver")]}
    changed |= {f"STOCHASTIC_{name.upper()}": value for name, value in numbers.items()}
    for name, value in changed.items():
        setattr(samplers, name, value)
    samplers.network_rows.cache_clear()


def log_snrs(evaluator: Evaluator, guided: tuple[float, float]) -> str:
    """An interval of levels, as log-SNR."""
    log_snr = evaluator.source.model.schedule.log_snr
    return " .. ".join(f"{log_snr[round(u * (len(log_snr) - 1))]:.1f}" for u in reversed(guided))


def intervals(text: str) -> list[tuple[float, float]]:
    """Reads 0.4-0.6,0.5-0.7.

    Raises:
        ValueError: naming the field, if a part is no pair of numbers.
    """
    matches = [re.fullmatch(r"([\d.]+)-([\d.]+)", part) for part in text.split(",")]
    pairs = [(float(match[1]), float(match[2])) for match in matches if match]
    require(len(pairs) == len(matches), "guided", repr(text), "LOW-HIGH,LOW-HIGH,...")
    return pairs


def dashed(pair: tuple[float, float]) -> str:
    """0.4-0.6."""
    return f"{pair[0]:g}-{pair[1]:g}"


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--model", default=Path("models/mnist"), type=click.Path(path_type=Path))
@click.option("--solver", default=DDIM, help=f"Of {', '.join(SOLVERS)}.")
@click.option("--num-steps", default="8")
@click.option("--guidance", default="1")
@click.option("--eta", default=f"{samplers.STOCHASTIC_ETA:g}")
@click.option("--first", default=f"{samplers.STOCHASTIC_FIRST:g}")
@click.option("--last", default=f"{samplers.STOCHASTIC_LAST:g}")
@click.option("--power", default=f"{samplers.STOCHASTIC_POWER:g}")
@click.option("--guided", default=dashed(samplers.STOCHASTIC_GUIDED))
@click.option("--num-images", default=2000, type=click.IntRange(100, 10_000), help="N.")
@click.option("--seed", default=0, help="Label y is drawn with seed + y.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="[default: runs/sweep/NAME]")
def main(
    *,
    model: Path,
    solver: str,
    num_steps: str,
    guidance: str,
    eta: str,
    first: str,
    last: str,
    power: str,
    guided: str,
    num_images: int,
    seed: int,
    work_dir: Path | None,
) -> None:
    """Command line."""
    try:
        settings = [
            Setting(SAMPLER, steps, scale)
            for steps in parse_numbers("num_steps", num_steps, int)
            for scale in parse_numbers("guidance", guidance, float)
        ]
        solvers = solver.split(",")
        for name in solvers:
            require(name in SOLVERS, "solver", repr(name), ", ".join(SOLVERS))
        shapes = itertools.starmap(
            Shape,
            itertools.product(
                solvers,
                parse_numbers("eta", eta, float),
                parse_numbers("first", first, float),
                parse_numbers("last", last, float),
                parse_numbers("power", power, float),
                intervals(guided),
            ),
        )
        combinations = list(itertools.product(settings, shapes))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    source = ImageSource(model)
    dataset_name = source.manifest.provenance["dataset"]
    store = Store(work_dir or Path("runs") / "sweep" / source.manifest.name)
    evaluator = Evaluator(
        source, load_dataset(dataset_name), dataset_name, load_judges(dataset_name), store
    )
    rows = []
    for setting, shape in combinations:
        use(shape)
        row = evaluator.generated(setting, seed, num_images)
        guidance_scale = setting.guidance_scale
        rows.append([
            shape.solver, str(setting.num_steps),
            "" if shape.solver == DPMPP_2M else f"{shape.eta:g}",
            f"{999 * shape.first:.0f} .. {999 * shape.last:.0f}, p {shape.power:g}",
            f"{guidance_scale:g}",
            "" if guidance_scale == 1 else log_snrs(evaluator, shape.guided),
            str(setting.rows_per_image), f"{row.label_accuracy:.2%}", f"{row.frechet_ratio:.2f}",
            f"{row.recall:.2%}", f"{row.coverage:.2%}",
        ])  # fmt: skip
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    click.echo(table(HEAD, rows))


if __name__ == "__main__":
    main()
