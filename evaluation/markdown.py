"""Numbers and tables in Markdown, each kind of number written in one way everywhere."""

from collections.abc import Sequence

from evaluation.rows import METRICS, Row, Spread, curve_lines


def share(value: float | None) -> str:
    """A share in [0, 1]: 97.53%."""
    return "" if value is None else f"{value:.2%}"


def number(value: float | None) -> str:
    """A number without a unit, to four digits or to the unit: 0.5298, 1.553, 12,345."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def count(value: int | None) -> str:
    """12,345."""
    return "" if value is None else f"{value:,}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


SHARES = ("label_accuracy", "precision", "recall", "coverage")
"""The metrics that are shares."""
_HEADS = {
    "label_accuracy": "labels",
    "frechet": "Frechet",
    "frechet_ratio": "to floor",
    "kernel_distance": "KID",
}


def metric(name: str, value: float) -> str:
    """A metric of a row."""
    return share(value) if name in SHARES else number(value)


def rows_table(rows: Sequence[Row]) -> str:
    """One line per row with all that it holds but the accuracy per label."""
    names = [heading(name) for name in METRICS]
    judges = [f"C{i + 1}" for i in range(len(rows[0].label_accuracy_per_judge))]
    head = ["source", "sampler", "num_steps", "guidance_scale", "rows per image", "N", "seed"]
    head += [names[0], *judges, *names[1:], "KID std", "images/s"]
    return table(head, [_row_cells(row) for row in rows])


def _row_cells(row: Row) -> list[str]:
    setting = row.setting
    how = ["", "", "", ""]
    if setting is not None:
        how = [setting.sampler, str(setting.num_steps), f"{setting.guidance_scale:g}"]
        how.append(str(setting.rows_per_image))
    metrics = [metric(name, value(row)) for name, value in METRICS.items()]
    judges = [share(value) for value in row.label_accuracy_per_judge]
    return [
        row.source,
        *how,
        count(row.num_images),
        str(row.seed),
        metrics[0],
        *judges,
        *metrics[1:],
        number(row.kernel_distance_std),
        number(row.images_per_second),
    ]


def heading(name: str) -> str:
    """What a metric is called in tables."""
    return _HEADS.get(name, name)


def spread_text(name: str, spread: Spread) -> str:
    """Mean, and standard deviation where there is one: 97.50% ± 0.12%."""
    mean = metric(name, spread.mean)
    return mean if spread.std is None else f"{mean} ± {metric(name, spread.std)}"


def curve_table(rows: Sequence[Row], name: str) -> str:
    """One metric of generated rows: a line per num_steps, a column per sampler and scale."""
    lines = curve_lines(rows)
    cells: dict[int, list[str]] = {}
    for column, (_, of_line) in enumerate(lines):
        for row in of_line:
            assert row.setting is not None  # curve_lines leaves out the others
            line = cells.setdefault(row.setting.num_steps, [""] * len(lines))
            line[column] = metric(name, METRICS[name](row))
    head = ["num_steps", *(line for line, _ in lines)]
    return table(head, [[str(num_steps), *cells[num_steps]] for num_steps in sorted(cells)])
