"""Trains a model and writes its bundle: what `docker compose --profile train run train` runs.

Takes the flags of `python -m training.train`. The run in runs/NAME becomes the bundle models/NAME.
"""

import signal
import sys

if __name__ == "__main__":
    # The first process of a container is not ended by a signal that it does not handle, and the
    # imports below take seconds.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

import logging
from collections.abc import Sequence
from pathlib import Path

from export.__main__ import main as export
from export.writing import ExportError, require_free
from training import train

MODELS = Path("models")
SETTINGS = ("--sampler", "ddim_stochastic", "--num-steps", "9", "--guidance-scale", "4")
"""What requests get that name none: the best that docs/quality.md knows."""


def why_not(bundle: Path) -> str | None:
    """Returns what would keep a bundle from being written: before hours of training, not after."""
    if bundle.exists():
        return f"{bundle} is there already; name another --output"
    try:
        require_free(bundle, force=False)
    except ExportError as error:
        return str(error)
    return None


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 if there is a bundle, else that of training or export."""
    config = train.parse_arguments(arguments)
    bundle = MODELS / config.output.name
    only_looks = config.dry_run or config.overfit_one_batch > 0
    if not only_looks and (reason := why_not(bundle)):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    code = train.main(arguments)
    if code == 0 and not only_looks:
        logging.getLogger().setLevel(logging.WARNING)  # the exporter below ours talks a lot
        made = ["--checkpoint", str(config.output), "--output", str(bundle), *SETTINGS]
        export.main(made, prog_name="export", standalone_mode=False)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
