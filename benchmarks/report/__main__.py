"""Composes benchmarks/RESULTS.md from benchmarks/results: `python -m benchmarks.report`.

And RESULTS-NAME.md from benchmarks/results/NAME, for each kind of machine beside that of the first.
No number on the pages is written by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from benchmarks.report import on_engine, on_gpu, on_limit, on_peers, on_startup, on_training

PAGE = Path("benchmarks/RESULTS.md")

SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "peers": ("Against the peers", on_peers.section),
    "engine": ("The engine against bare network calls", on_engine.section),
    "limit": ("Against the machine's limit", on_limit.section),
    "startup": ("Start-up, memory, room on disk", on_startup.section),
    "training": ("Training", on_training.section),
    "gpu": ("On a GPU", on_gpu.section),
}
"""Of the page, in order: benchmark -> (heading, its section from its data)."""

WHY_NOT = {"gpu": "It needs an NVIDIA GPU."}
"""Of benchmarks without a result: the reason, if there is one."""


_INTRODUCTION = (
    "# Results of the benchmarks\n\n"
    "Composed by `python -m benchmarks.report` from the files in `benchmarks/results`; none of the"
    " numbers is written by hand. `make bench` measures all of them anew, in about an hour on"
    " two cores. Absolute figures drift from machine to machine and from day to day; ratios are"
    " taken within one run, turn by turn. Ranges are over turns."
)


_TOO_BUSY = 0.1  # of all CPU time, just before a benchmark began


def compose(directory: Path) -> str:
    """The page, from every result in a directory.

    Raises:
        ValueError: there is none.
    """
    found = {
        name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        for name in SECTIONS
        if (directory / f"{name}.json").is_file()
    }
    if not found:
        raise ValueError(f"{directory} holds no results")
    parts = [_INTRODUCTION]
    if others := other_machines(directory):
        links = ", ".join(f"[{other.name}]({page_of(other).name})" for other in others)
        parts.append(f"On other kinds of machines: {links}.")
    for name, (heading, section) in SECTIONS.items():
        if name in found:
            parts += [f"## {heading}", _origin(found[name]), section(found[name]["data"])]
            for other in _also(directory, name):
                device = other["data"].get("device", "another machine")
                parts += [f"### The same on {device}", _origin(other), section(other["data"])]
        else:
            why = WHY_NOT.get(name, "")
            parts += [f"## {heading}", f"Not measured yet: `make bench-{name}`. {why}"]
    return results.paragraphs(*parts) + "\n"


def _also(directory: Path, name: str) -> list[dict[str, Any]]:
    """Results of the same benchmark beside the main one: NAME-*.json."""
    files = sorted(directory.glob(f"{name}-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def other_machines(directory: Path) -> list[Path]:
    """Directories of results of other kinds of machines, beside those that `directory` holds."""
    return sorted(path for path in directory.iterdir() if path.is_dir())


def page_of(directory: Path) -> Path:
    """The page of such a directory."""
    return PAGE.with_name(f"{PAGE.stem}-{directory.name}{PAGE.suffix}")


def _origin(result: dict[str, Any]) -> str:
    machine = result["machine"]
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    text = (
        f"`{result['command']}` on {result['date']}: {machine['cpus']} CPUs of {machine['cpu']}"
        f" ({', '.join(machine['features'])}), {machine['memory_gib']:g} GiB, {machine['system']},"
        f" Python {machine['python']}, {packages}."
    )
    if result["quick"]:
        text += " **A quick run: it shows that the benchmark works, its figures mean nothing.**"
    busy = machine["busy_before"]
    if busy is not None:
        text += f" Other work took {100 * busy:.0f} % of the CPUs just before."
    if busy is not None and busy > _TOO_BUSY:
        text += " **The machine was not quiet: the figures are not to be trusted.**"
    return text


@click.command()
@click.option("--quick", is_flag=True, help="Of the quick runs, to build/benchmarks.")
def main(*, quick: bool) -> None:
    """Writes the pages."""
    if quick:
        pages = {results.QUICK_DIRECTORY / PAGE.name: results.QUICK_DIRECTORY}
    else:
        pages = {PAGE: results.DIRECTORY}
        pages |= {page_of(other): other for other in other_machines(results.DIRECTORY)}
    for page, directory in pages.items():
        try:
            page.write_text(compose(directory), encoding="utf-8")
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        click.echo(f"wrote {page}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.report")
