"""What the server's messages say, as plain typed values."""

from dataclasses import asdict, dataclass

from grpc_health.v1 import health_pb2

from serving.images import Pixels, decode_raw
from simple_diffusion.v1 import diffusion_pb2 as pb

SAMPLERS = {
    "ddpm": pb.SAMPLER_DDPM,
    "ddim": pb.SAMPLER_DDIM,
    "dpmpp_2m": pb.SAMPLER_DPMPP_2M,
    "ddim_stochastic": pb.SAMPLER_DDIM_STOCHASTIC,
}
_SAMPLER_NAMES: dict[int, str] = {number: name for name, number in SAMPLERS.items()}


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """One image.

    Attributes:
        index: under the seed, 0 or more.
        pixels: uint8 [H, W, C], C is 1 (grey) or 3 (RGB); 0 is black.
    """

    index: int
    pixels: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """How an unfinished image looks so far.

    Attributes:
        index: of the image under the seed.
        step: how many of its reverse steps are done, 1 .. num_steps - 1.
        pixels: the current estimate of the finished image, uint8 [H, W, C].
    """

    index: int
    step: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Summary:
    """How the images of one request were made. These values give the same pixels again.

    Attributes:
        label: class index that was asked for.
        seed: uint64; drawn, if none was asked for.
        model: name of the model.
        model_version: of its weights.
        sampler: "ddpm", "ddim", "dpmpp_2m" or "ddim_stochastic".
        num_steps: reverse steps per image, 1 .. T of the model.
        guidance_scale: 0 .. 20; 1 is the plain conditional model.
        queue_seconds: from acceptance until the first image entered a batch.
        compute_seconds: from then until the last image was finished.
    """

    label: int
    seed: int
    model: str
    model_version: str
    sampler: str
    num_steps: int
    guidance_scale: float
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class Generation(Summary):
    """The images of one request, and how they were made (`Summary`).

    Attributes:
        images: in the order of their indices.
    """

    images: tuple[GeneratedImage, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a server has loaded; `default_...` is used where a request says nothing.

    Attributes:
        name: what requests call it.
        version: of its weights; other weights may draw other pixels for the same seed.
        label_names: what each label stands for; label i is label_names[i].
        width: pixels per row.
        height: rows.
        channels: 1 (grey) or 3 (RGB).
        num_train_timesteps: T, the largest num_steps.
        default_sampler: a name of `Catalog.samplers`.
        default_num_steps: network calls per image, 1 .. T.
        default_guidance_scale: 0 .. 20; 1 is the plain conditional model.
        train_label_counts: training images of each label; empty if the model does not say.
    """

    name: str
    version: str
    label_names: tuple[str, ...]
    width: int
    height: int
    channels: int
    num_train_timesteps: int
    default_sampler: str
    default_num_steps: int
    default_guidance_scale: float
    train_label_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a server can draw.

    Attributes:
        models: at least one; the first is used where a request names none.
        samplers: names of the samplers that every model can be drawn with.
        max_images_per_request: the largest count.
        max_guidance_scale: the largest guidance_scale.
    """

    models: tuple[Model, ...]
    samplers: tuple[str, ...]
    max_images_per_request: int
    max_guidance_scale: float


def parse_image(image: pb.Image) -> GeneratedImage:
    """Returns an image in IMAGE_FORMAT_RAW_UINT8, the one that this client asks for."""
    return GeneratedImage(image.index, _pixels(image))


def parse_preview(preview: pb.Preview) -> Preview:
    """Returns a preview."""
    return Preview(preview.image.index, preview.step, _pixels(preview.image))


def parse_summary(label: int, message: pb.GenerateSummary | pb.GenerateResponse) -> Summary:
    """Returns how the images of `label` were made."""
    return Summary(
        label=label,
        seed=message.seed,
        model=message.model,
        model_version=message.model_version,
        sampler=_sampler_name(message.sampler),
        num_steps=message.num_steps,
        guidance_scale=message.guidance_scale,
        queue_seconds=message.queue_seconds,
        compute_seconds=message.compute_seconds,
    )


def parse_generation(label: int, response: pb.GenerateResponse) -> Generation:
    """Returns the answer to a request for images of `label`."""
    images = tuple(parse_image(image) for image in response.images)
    return Generation(**asdict(parse_summary(label, response)), images=images)


def parse_catalog(response: pb.ListModelsResponse) -> Catalog:
    """Returns what a server can draw."""
    return Catalog(
        models=tuple(_model(model) for model in response.models),
        samplers=tuple(_sampler_name(number) for number in response.samplers),
        max_images_per_request=response.max_images_per_request,
        max_guidance_scale=response.max_guidance_scale,
    )


def parse_health(response: health_pb2.HealthCheckResponse) -> str:
    """Returns the name of a health status, for example "SERVING"."""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def _pixels(image: pb.Image) -> Pixels:
    return decode_raw(image.data, image.height, image.width, image.channels)


def _sampler_name(number: int) -> str:
    # A newer server may have samplers that this client has no name for.
    return _SAMPLER_NAMES.get(number, str(number))


def _model(model: pb.Model) -> Model:
    return Model(
        name=model.name,
        version=model.version,
        label_names=tuple(model.label_names),
        width=model.width,
        height=model.height,
        channels=model.channels,
        num_train_timesteps=model.num_train_timesteps,
        default_sampler=_sampler_name(model.default_sampler),
        default_num_steps=model.default_num_steps,
        default_guidance_scale=model.default_guidance_scale,
        train_label_counts=tuple(model.train_label_counts),
    )
