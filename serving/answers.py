"""Assembles the messages that answer a request. Encoding takes time: call it off the event loop."""

from dataclasses import dataclass
from typing import Any

from serving import images
from serving.delivery import Ending, Parcel
from serving.request import GenerateSpec
from serving.validation import SAMPLER_NUMBERS, ServedModel
from simple_diffusion.v1 import diffusion_pb2 as pb


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was accepted: the model, what to draw, and how to write the pixels."""

    model: ServedModel
    spec: GenerateSpec
    format: pb.ImageFormat.ValueType


def _image(accepted: Accepted, index: int, pixels: images.Pixels) -> pb.Image:
    rows = images.channels_last(pixels)
    raw = accepted.format == pb.IMAGE_FORMAT_RAW_UINT8
    return pb.Image(
        index=index,
        data=images.encode_raw(rows) if raw else images.encode_png(rows),
        format=accepted.format,
        width=accepted.model.width,
        height=accepted.model.height,
        channels=accepted.model.channels,
    )


def _how(accepted: Accepted, ending: Ending) -> dict[str, Any]:
    """The fields that say how the images were made."""
    return {
        "seed": accepted.spec.seed,
        "model": accepted.model.name,
        "model_version": accepted.model.version,
        "sampler": SAMPLER_NUMBERS[accepted.spec.sampler],
        "num_steps": accepted.spec.num_steps,
        "guidance_scale": accepted.spec.guidance_scale,
        "queue_seconds": ending.queue_seconds,
        "compute_seconds": ending.compute_seconds,
    }


def response(
    accepted: Accepted, finished: list[tuple[int, images.Pixels]], ending: Ending
) -> pb.GenerateResponse:
    """Returns the answer of Generate, with the images in the order of their indices."""
    message = pb.GenerateResponse(**_how(accepted, ending))
    for index, pixels in sorted(finished, key=lambda image: image[0]):
        message.images.append(_image(accepted, index, pixels))
    return message


def events(accepted: Accepted, parcel: Parcel) -> list[pb.GenerateStreamResponse]:
    """Returns one event for each image of a parcel, then one for each preview."""
    version = accepted.model.version
    messages = [
        pb.GenerateStreamResponse(image=_image(accepted, index, pixels), model_version=version)
        for index, pixels in parcel.images
    ]
    messages += [
        pb.GenerateStreamResponse(
            preview=pb.Preview(image=_image(accepted, index, pixels), step=position),
            model_version=version,
        )
        for index, position, pixels in parcel.previews
    ]
    return messages


def summary_event(accepted: Accepted, ending: Ending) -> pb.GenerateStreamResponse:
    """Returns the event that ends a stream."""
    summary = pb.GenerateSummary(**_how(accepted, ending))
    return pb.GenerateStreamResponse(summary=summary, model_version=accepted.model.version)


def describe(model: ServedModel) -> pb.Model:
    """Returns what ListModels says of one model."""
    return pb.Model(
        name=model.name,
        version=model.version,
        label_names=model.label_names,
        width=model.width,
        height=model.height,
        channels=model.channels,
        num_train_timesteps=model.num_train_timesteps,
        default_sampler=SAMPLER_NUMBERS[model.default_sampler],
        default_num_steps=model.default_num_steps,
        default_guidance_scale=model.default_guidance_scale,
        train_label_counts=model.train_label_counts,
    )
