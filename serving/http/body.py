"""The JSON that POST /v1/generate takes, and the GenerateRequest that it becomes.

Only names and types are checked here; ranges are the business of `serving.validation`, as for every
other caller.
"""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serving import refusal
from serving.validation import Violation
from simple_diffusion.v1 import diffusion_pb2 as pb

MAX_SEED = 2**64 - 1

_MAX_ECHO = 60
_TEXTS = {
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not finite",
    "string_type": "is not a string",
}
_SIZES = {
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "int_parsing_size": "is too large",
}


def decimals_up_to(largest: int) -> str:
    """Returns a regular expression for the decimal numbers 0 .. largest, without leading zeros."""
    digits = str(largest)
    shorter = [f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
    branches = ["0", *shorter]
    for position, digit in enumerate(digits):
        low = 1 if position == 0 else 0
        if int(digit) > low:
            rest = len(digits) - position - 1
            branches.append(f"{digits[:position]}[{low}-{int(digit) - 1}][0-9]{{{rest}}}")
    return f"^({'|'.join([*branches, digits])})$"


SEED_PATTERN = decimals_up_to(MAX_SEED)
"""Seeds as text: JavaScript and many others cannot hold numbers above 2**53."""


def _from_decimals(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(SEED_PATTERN, value) else value


def _from_whole(value: object) -> object:
    """JSON has one kind of number: 7.0 is 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known(names: list[str]) -> Any:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


_Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), BeforeValidator(_from_whole)]
_Seed = Annotated[
    int,
    Field(ge=0, le=MAX_SEED),
    BeforeValidator(_from_decimals),
    BeforeValidator(_from_whole),
]
_Sampler = Annotated[str, _known(pb.Sampler.keys())]
_ImageFormat = Annotated[str, _known(pb.ImageFormat.keys())]


class GenerateBody(BaseModel):
    """Asks for images of one class. A field that is left out is unset."""

    model_config = ConfigDict(extra="forbid", strict=True, title="GenerateRequest")

    # The defaults are never used: only the fields that were sent are looked at.
    label: _Int32 = Field(0, description="The class to draw: an index into label_names.")
    count: _Int32 = Field(0, description="How many images. Unset: 1.")
    seed: _Seed = Field(
        0,
        description="Where all randomness comes from; a number, or a string of its decimals for"
        " languages that cannot hold it. Unset: the server draws one, and the answer carries it.",
    )
    model: str = Field("", description="Unset or empty: the first of /v1/models.")
    sampler: _Sampler = Field("", description="The reverse process. Unset: the model's default.")
    num_steps: _Int32 = Field(0, description="Reverse steps per image. Unset: the model's default.")
    guidance_scale: float = Field(
        0,
        allow_inf_nan=False,
        description="Classifier-free guidance: 0 ignores the label, 1 is the plain conditional"
        " model, more is more typical and less diverse. Unset: the model's default.",
    )
    format: _ImageFormat = Field("", description="How images[].data is written. Unset: PNG.")
    first_index: _Int32 = Field(
        0,
        description="Index of the first image; first_index + count may not exceed 2147483648."
        " With the same seed, indices 0..9 are those of 0..3 and 4..9.",
    )
    preview_every: _Int32 = Field(
        0,
        description="Event streams only: the estimate of each image after every so many steps."
        " 0: no previews.",
    )


def read(body: bytes) -> pb.GenerateRequest:
    """Returns the message.

    Raises:
        RefusedError: INVALID_ARGUMENT, naming every field that is unknown or of a wrong type.
    """
    try:
        fields = GenerateBody.model_validate_json(body).model_dump(exclude_unset=True)
    except ValidationError as error:
        found = [_violation(each) for each in error.errors(include_url=False)]
        raise refusal.invalid(found) from None
    return pb.GenerateRequest(**fields)


def _violation(error: Any) -> Violation:
    kind = error["type"]
    if kind == "json_invalid":
        text = f"this is not JSON: {error['ctx']['error']}"
        return Violation("request", text, "NOT_DECODABLE")
    if not error["loc"]:
        return Violation("request", "this is not a JSON object", "NOT_DECODABLE")
    name = str(error["loc"][0])[:_MAX_ECHO]
    if kind == "extra_forbidden":
        known = ", ".join(GenerateBody.model_fields)
        return Violation(name, f"there is no such field; there are {known}", "UNKNOWN_FIELD")
    value = _shown(error["input"])
    if kind in _SIZES:
        return Violation(name, f"{value} {_SIZES[kind]}", "OUT_OF_RANGE")
    text = _TEXTS.get(kind, error["msg"].removeprefix("Value error, "))
    return Violation(name, f"{value} {text}", "WRONG_TYPE")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_ECHO else f"{text[:_MAX_ECHO]}..."
