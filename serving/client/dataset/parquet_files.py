"""One Parquet file per split in the schema of Hugging Face's `datasets`. Alone imports pyarrow."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.client.dataset.plan import DatasetPlan
from serving.client.dataset.split_images import SplitImages
from serving.client.dataset.unfinished import DatasetError
from serving.client.dataset.whole_files import whole_file
from serving.images import encode_png

FOLDER = Path("data")


def require_pyarrow() -> None:
    """Raises DatasetError if the package that writes Parquet is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DatasetError(
            "--format parquet needs the package pyarrow: pip install 'simple-diffusion[parquet]'"
        )


def features(plan: DatasetPlan) -> dict[str, Any]:
    """What `datasets` reads out of the file: an Image column and a ClassLabel column."""
    label = {"names": [*plan.label_names], "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "label": label}


def write(
    output: Path, plan: DatasetPlan, splits: list[SplitImages], on_images: Callable[[int], None]
) -> None:
    """Writes data/SPLIT-00000-of-00001.parquet: PNG bytes with a path, and the label."""
    import pyarrow as pa  # noqa: PLC0415  (an extra)
    from pyarrow import parquet  # noqa: PLC0415

    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features(plan)}})},
    )
    digits = len(str(plan.total - 1))
    for split in splits:
        path = output / FOLDER / f"{split.name}-00000-of-00001.parquet"
        with whole_file(path) as stream, parquet.ParquetWriter(stream, schema) as writer:
            for rows, chunk in split.chunks():
                images = [
                    {"bytes": encode_png(pixels), "path": f"{index:0{digits}d}.png"}
                    for index, pixels in zip(split.indices[rows], chunk, strict=True)
                ]
                columns = {"image": images, "label": split.labels[rows].tolist()}
                writer.write_table(pa.table(columns, schema=schema))
                on_images(len(chunk))
