"""`make ablate`: one change of the recipe at a time, all at equal training FLOP, as a table.

Each run is `python -m training.train` with the flags that the table names, kept under --output:
what is finished is not run again, and what was interrupted is resumed. Images are judged at the end
of each run: DDPM in 10 steps, EMA weights.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import click

from evaluation.markdown import table
from training.cost import forward_flop
from training.train import parse_arguments

BASELINE = "baseline"
VARIANTS: dict[str, str] = {
    BASELINE: "",
    "eps inside": "--prediction eps --loss-weighting eps",
    "residual eps inside": "--prediction residual_eps --loss-weighting eps",
    "v inside, loss on eps": "--loss-weighting eps",
    "v inside, soft_v": "--loss-weighting soft_v",
    "v inside, min-SNR": "--loss-weighting min_snr",
    "t not stratified": "--t-sampling uniform",
    "no label dropout": "--label-dropout 0",
    "label dropout 0.2": "--label-dropout 0.2",
    "dropout 0.1": "--dropout 0.1",
    "no attention": "--no-attention",
    "EMA width 0.02": "--ema-relative-width 0.02",
    "EMA width 0.1": "--ema-relative-width 0.1",
    "AdamW": "--optimizer adamw",
    "batches of 128": "--batch-size 128",
    "one block at 7x7 less": "--middle-blocks 2",
    "two blocks at 7x7 more": "--middle-blocks 5",
    "two blocks per resolution": "--blocks-per-resolution 2",
    "widths 16, 48, 96": "--widths 16 48 96",
    "widths 32, 32, 64": "--widths 32 32 64",
    "widths 32, 64, 128": "--widths 32 64 128",
}
"""What is changed: its flags."""

FIGURES = {
    "validation_eps_mse": ("held-out eps-MSE", "{:.4f}", 1.0),
    "validation_label_accuracy": ("labels", "{:.2f} %", 100.0),
    "validation_frechet_ratio": ("ratio", "{:.2f}", 1.0),
}
"""Field of the log: head of its column, form, factor."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        flags: of python -m training.train.
        output: the run's folder.
        epochs: as many as cost the FLOP of the baseline's.
        multiply_adds: of one network call.
    """

    flags: list[str]
    output: Path
    epochs: float
    multiply_adds: int


def plan_run(name: str, seed: int, epochs: float, common: list[str], output: Path) -> Run:
    """The run of a variant.

    Args:
        name: a key of VARIANTS.
        seed: of the run.
        epochs: of the baseline, above 0.
        common: flags of every run.
        output: folder of all runs.
    """
    baseline = forward_flop(parse_arguments(common).model)
    flags = [*common, *VARIANTS[name].split(), "--seed", str(seed)]
    flop = forward_flop(parse_arguments(flags).model)
    equal_epochs = round(epochs * baseline / flop, 4)
    folder = output / f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}"
    flags += ["--epochs", str(equal_epochs), "--output", str(folder)]
    return Run(flags, folder, equal_epochs, flop // 2)


def result_of(run: Run) -> dict[str, float] | None:
    """What was measured after the last train step of a run; None if it has not ended."""
    log = run.output / "log.jsonl"
    if not log.exists():
        return None
    last: dict[str, float] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    ended = last["progress"] == 1 and "validation_eps_mse" in last
    return last if ended else None


def train(run: Run) -> dict[str, float]:
    """Run or resume a training, unless it has ended, and return what was measured.

    Raises:
        click.ClickException: it failed.
    """
    if (found := result_of(run)) is not None:
        return found
    command = [sys.executable, "-m", "training.train", *run.flags]
    if any(run.output.glob("checkpoint-*")):
        command.append("--resume")
    ended = subprocess.run(command, check=False)
    found = result_of(run)
    if ended.returncode != 0 or found is None:
        raise click.ClickException(f"exit code {ended.returncode} of: {' '.join(command)}")
    return found


def cell(results: list[dict[str, float]], field: str) -> str:
    """Mean of a figure, with its standard deviation where there are several runs."""
    _, form, factor = FIGURES[field]
    values = [factor * result[field] for result in results]
    mean = form.format(fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {form.format(stdev(values)).removesuffix(' %')}"


def rows_of(done: dict[str, list[tuple[Run, dict[str, float]]]]) -> list[list[str]]:
    """A row per variant: what was changed, what it costs, and what it gave over all seeds."""
    rows = []
    for name, runs in done.items():
        run, results = runs[0][0], [result for _, result in runs]
        flags = f"`{VARIANTS[name]}`" if VARIANTS[name] else ""
        cost = [f"{run.multiply_adds / 1e6:.0f} M", f"{run.epochs:.2f}"]
        figures = [cell(results, field) for field in FIGURES]
        rows.append([name, flags, *cost, str(len(results)), *figures])
    return rows


HEAD = ["change", "flags", "multiply-adds", "epochs", "seeds", *(h for h, _, _ in FIGURES.values())]


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--variant", "names", multiple=True, type=click.Choice(list(VARIANTS)),
              help="Repeatable. [default: all]")  # fmt: skip
@click.option("--preset", default="tiny", help="Of the baseline.")
@click.option("--epochs", default=1.0, type=click.FloatRange(min=0, min_open=True),
              help="Of the baseline; the others get the same FLOP.")  # fmt: skip
@click.option("--seeds", default=3, type=click.IntRange(min=1), help="Runs of each: 0, 1, ...")
@click.option("--num-images", default=2000, type=click.IntRange(10, 10_000), help="Judged per run.")
@click.option("--threads", default=0, type=click.IntRange(min=0), help="0: PyTorch's choice.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As of python -m training.train.")
@click.option("--output", default=Path("runs/ablations"), type=click.Path(path_type=Path),
              help="Folder of all runs.")  # fmt: skip
def main(
    *,
    names: tuple[str, ...],
    preset: str,
    epochs: float,
    seeds: int,
    num_images: int,
    threads: int,
    data_dir: Path | None,
    output: Path,
) -> None:
    """Command line."""
    common = ["--preset", preset, "--validate-every", "0", "--sample-every", "0"]
    common += ["--validate-num-images", str(num_images), "--num-threads", str(threads)]
    common += ["--no-tensorboard"]
    if data_dir is not None:
        common += ["--data-dir", str(data_dir), "--allow-other-data"]
    done: dict[str, list[tuple[Run, dict[str, float]]]] = {}
    # Seed by seed, so that a table that is cut short is of all variants.
    for seed in range(seeds):
        for name in names or VARIANTS:
            run = plan_run(name, seed, epochs, common, output)
            done.setdefault(name, []).append((run, train(run)))
        click.echo(table(HEAD, rows_of(done)))


if __name__ == "__main__":
    main()
