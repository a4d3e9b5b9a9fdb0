"""The data card: dataset.json for programs, README.md for people and for Hugging Face."""

import json
import shlex
from typing import Any

from serving.client.dataset import checksums, idx_files, parquet_files, png_folders
from serving.client.dataset.plan import DatasetPlan
from serving.client.dataset.split_images import SplitImages

JSON_NAME, README_NAME = "dataset.json", "README.md"

_ROW_ORDER = 'sorted by the 16-byte BLAKE2b of "SEED/INDEX"'


_INTRODUCTION = (
    "Drawn by the diffusion model {model}; no real image is in it. The label of an image is what"
    " the model was asked for."
)


def card(plan: DatasetPlan, splits: list[SplitImages], sums_sha256: str) -> dict[str, Any]:
    """Returns what dataset.json holds: the same for the same plan, whenever it is written."""
    return {
        "format_version": 1,
        "plan": plan.to_json(),
        "row_order": _ROW_ORDER,
        "splits": {
            split.name: {
                "images": len(split),
                "first_index": int(split.indices.min(initial=plan.total)),
                "label_counts": [*plan.label_counts(split.name)],
                "pixels_sha256": split.sha256(),
            }
            for split in splits
        },
        "files_sha256": sums_sha256,
        "command": command(plan),
    }


def command(plan: DatasetPlan) -> str:
    """Returns the command that writes the same data set again."""
    labels = ",".join(f"{i}={weight}" for i, weight in enumerate(plan.label_weights) if weight)
    arguments = [
        *("--count", plan.train_count, "--test-count", plan.test_count, "--seed", plan.seed),
        *("--labels", labels, "--model", plan.model, "--sampler", plan.sampler),
        *("--num-steps", plan.num_steps, "--guidance-scale", plan.guidance_scale),
        *(part for name in plan.formats for part in ("--format", name)),
    ]
    program = "python -m serving.client dataset"
    return f"{program} {shlex.join(map(str, arguments))} --output OUTPUT"


def readme(plan: DatasetPlan, written: dict[str, Any]) -> str:
    """Returns README.md for a card."""
    sections = [
        _front_matter(plan),
        f"# {plan.total:,} synthetic images of {plan.model}",
        _INTRODUCTION.format(model=f"{plan.model} {plan.model_version}"),
        _table(plan),
        *(_READING[name] for name in plan.formats),
        _made(plan, written),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(plan: DatasetPlan) -> str:
    # JSON is YAML too.
    files = []
    if "parquet" in plan.formats:
        folder = parquet_files.FOLDER.as_posix()
        files = [
            {"split": split, "path": f"{folder}/{split}-*.parquet"} for split in ("train", "test")
        ]
    elif "png" in plan.formats:
        files = [{"split": split, "path": f"{split}/**"} for split in ("train", "test")]
    fields: dict[str, Any] = {
        "pretty_name": f"Synthetic {plan.model}",
        "task_categories": ["image-classification"],
        "tags": ["synthetic"],
    }
    if files:
        fields["configs"] = [{"config_name": "default", "data_files": files}]
    return "\n".join(["---", *(f"{name}: {json.dumps(fields[name])}" for name in fields), "---"])


def _table(plan: DatasetPlan) -> str:
    names = (name.replace("|", "\\|") for name in plan.label_names)
    counts = zip(names, plan.label_counts("train"), plan.label_counts("test"), strict=True)
    rows = [
        f"| {i} | {name} | {train:,} | {test:,} |" for i, (name, train, test) in enumerate(counts)
    ]
    size = f"{plan.width}x{plan.height} {'grey' if plan.channels == 1 else 'RGB'}, uint8."
    return "\n".join([
        size, "", "| label | name | train | test |", "|---|---|---|---|", *rows,
        f"| | all | {plan.train_count:,} | {plan.test_count:,} |",
    ])  # fmt: skip


_READING = {
    "idx": f"""## IDX

`{idx_files.FOLDER.as_posix()}` holds MNIST's four files, gzipped and as they are, the way
torchvision's own download leaves them:

```python
from torchvision.datasets import MNIST

train, test = MNIST("OUTPUT", train=True), MNIST("OUTPUT", train=False)
```""",
    "png": """## PNG

A folder per split, in it a folder per class, in it a file per image, named after its index:

```python
from torchvision.datasets import ImageFolder

train = ImageFolder("OUTPUT/train")
```""",
    "parquet": f"""## Parquet

`{parquet_files.FOLDER.as_posix()}` holds a file per split with the columns `image` (PNG bytes and
a path) and `label`, in the schema of Hugging Face's `datasets`:

```python
from datasets import load_dataset

dataset = load_dataset("OUTPUT")
```""",
}


def _made(plan: DatasetPlan, written: dict[str, Any]) -> str:
    train, test = (written["splits"][name] for name in ("train", "test"))
    return f"""## How it was made

{_class_folders(plan)}Image `index` of label `y` is what
`Generate(label=y, seed={plan.seed}, first_index=index, count=1)` draws, with the sampler
{plan.sampler}, {plan.num_steps} steps and guidance scale {plan.guidance_scale:g}. All indices
differ, so no two images share their noise. The training images have the indices
{train["first_index"]} .. {plan.train_count - 1}, the test images those from {test["first_index"]}
on, label by label; in the files they are {_ROW_ORDER}. This makes the same again:

```sh
{written["command"]}
```

sha256 of the pixels in the order of the rows: training `{train["pixels_sha256"]}`,
test `{test["pixels_sha256"]}`.
The files are listed in `{checksums.NAME}` (`sha256sum --check {checksums.NAME}`). The same command
on the same kind of processor gives the same pixels; compressed files are equal to the bit with the
same versions of zlib, Pillow and pyarrow."""


def _class_folders(plan: DatasetPlan) -> str:
    if "png" not in plan.formats:
        return ""
    pairs = zip(png_folders.class_folders(plan.label_names), plan.label_names, strict=True)
    named = [f"`{folder}` is {name}" for folder, name in pairs if folder != name]
    return f"Folders of classes: {', '.join(named)}.\n\n" if named else ""
