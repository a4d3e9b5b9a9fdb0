"""All pictures of docs/how-it-works.md."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from tools.docs_pictures import (
    batching,
    embedding,
    guidance,
    noise_schedule,
    num_steps,
    there_and_back,
)
from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data, Picture

_HERE = Path(__file__).parent


def _picture(
    name: str, measure: Callable[[Model], Data], draw: Callable[[Data], Figure]
) -> Picture:
    own = _HERE / f"{name.replace('-', '_')}.py"
    return Picture(name, measure, draw, (own, _HERE / "sheet.py"))


PICTURES = (
    _picture("noise-schedule", noise_schedule.measure, noise_schedule.draw),
    _picture("there-and-back", there_and_back.measure, there_and_back.draw),
    _picture("embedding", embedding.measure, embedding.draw),
    _picture("guidance", guidance.measure, guidance.draw),
    _picture("num-steps", num_steps.measure, num_steps.draw),
    _picture("batching", batching.measure, batching.draw),
)
