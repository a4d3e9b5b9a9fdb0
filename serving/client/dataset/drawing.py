"""Asks the server for what is missing, several requests at a time, so that it is never idle."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving.client.dataset.plan import DatasetPlan, Span
from serving.client.dataset.unfinished import DatasetError, Unfinished
from serving.client.results import Generation
from serving.client.sync_client import Client

MAX_IMAGES_PER_REQUEST = 128
"""Enough for a full batch, and little to draw again when a run is interrupted."""


def draw(
    client: Client,
    plan: DatasetPlan,
    unfinished: Unfinished,
    *,
    images_per_request: int,
    in_flight: int,
    on_images: Callable[[int], None],
) -> None:
    """Draws every image that is missing; what has come stays, however this ends.

    Args:
        client: retries as its policy says.
        plan: what to ask for.
        unfinished: where images go.
        images_per_request: at least 1, and no more than the server takes.
        in_flight: requests at a time, at least 1.
        on_images: told how many images have come; one call at a time.

    Raises:
        ClientError: a request failed for good.
        DatasetError: the server has another version of the model by now.
    """
    spans = plan.spans(unfinished.drawn.copy(), images_per_request)
    lock = threading.Lock()
    stop = threading.Event()

    def next_span() -> Span | None:
        with lock:
            return None if stop.is_set() else next(spans, None)

    def work() -> None:
        try:
            while (span := next_span()) is not None:
                generation = _ask(client, plan, span)
                pixels = np.stack([image.pixels for image in generation.images])
                with lock:
                    unfinished.keep(span, pixels)
                    on_images(span.count)
        except BaseException:
            stop.set()  # the others finish what they have asked for
            raise

    with ThreadPoolExecutor(in_flight) as threads:
        workers = [threads.submit(work) for _ in range(in_flight)]
        try:
            for worker in workers:
                worker.result()
        except KeyboardInterrupt:
            stop.set()
            client.close()  # the running calls end at once
            raise


def _ask(client: Client, plan: DatasetPlan, span: Span) -> Generation:
    generation = client.generate(
        span.label,
        span.count,
        seed=plan.seed,
        model=plan.model,
        sampler=plan.sampler,
        num_steps=plan.num_steps,
        guidance_scale=plan.guidance_scale,
        first_index=span.first_index,
    )
    if generation.model_version != plan.model_version:
        raise DatasetError(
            f"the server's {plan.model} is version {generation.model_version} now; this data set"
            f" was begun with {plan.model_version}"
        )
    return generation
