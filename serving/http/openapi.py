"""GET /openapi.json: the API as OpenAPI 3.1, with the limits of this server."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serving.http.body import SEED_PATTERN, GenerateBody
from serving.http.negotiation import EVENTS, JSON, PNG
from serving.http.receiving import TIMEOUT_HEADER, TIMEOUT_PATTERN
from serving.http.schemas import message_schemas
from serving.refusal import RefusedError
from serving.request_id import KEY
from serving.service import DiffusionService
from serving.validation import MAX_INDEX
from simple_diffusion.v1 import diffusion_pb2 as pb

_ERRORS = {
    "400": "A field is missing, unknown, of a wrong type or out of range: one violation for each.",
    "401": "The token is missing or wrong.",
    "403": "A page of another site has asked, or the host name is not one of this server's.",
    "404": "There is no such model.",
    "406": "None of the media types that are accepted can be had.",
    "415": "The body is not said to be JSON.",
    "429": "The queue is full, or the deadline cannot be met: come back after Retry-After seconds.",
    "500": "The server failed at this request; the message holds an id that it has logged.",
    "503": "The server is starting or draining.",
    "504": "The deadline passed.",
}


def route(service: DiffusionService) -> Route:
    """Returns GET /openapi.json."""

    async def get_openapi(_: Request) -> JSONResponse:
        try:
            # What is here to be drawn is not for those who may not ask.
            models = None if service.needs_token else service.list_models()
        except RefusedError:
            models = None
        return JSONResponse(document(models, needs_token=service.needs_token))

    return Route("/openapi.json", get_openapi)


def document(models: pb.ListModelsResponse | None, *, needs_token: bool) -> dict[str, Any]:
    """Returns the document.

    Args:
        models: whose limits are named; None for none. With several models the widest are.
        needs_token: whether requests need a token.
    """
    generate = {
        "operationId": "generate",
        "summary": "Draw images of one class",
        "description": "A request is a pure function of its fields: the same fields and seed give"
        " the same pixels. The Accept header chooses between JSON, one PNG with all images as a"
        f" grid ({PNG}), and server-sent events ({EVENTS}): `image` for each finished image,"
        " `preview` if preview_every is set, `summary` at the end, or `error`.",
        "parameters": [
            _header(
                TIMEOUT_HEADER,
                "Seconds after which the caller gives up. Unset: the server's own limit.",
                {"type": "string", "pattern": TIMEOUT_PATTERN},
            ),
            _header(
                KEY,
                "An id for the log, 1 to 64 visible ASCII characters; the answer carries it."
                " Anything else is replaced.",
                {"type": "string"},
            ),
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": _ref("GenerateRequest")}}},
        "responses": {
            "200": {
                "description": "The images.",
                "content": {
                    JSON: {"schema": _ref("GenerateResponse")},
                    PNG: {},
                    EVENTS: {"schema": _EVENT_SCHEMA},
                },
            },
            **_errors(*_ERRORS),
        },
    }
    list_models = {
        "operationId": "listModels",
        "summary": "What there is to draw, and the limits",
        "responses": {
            "200": {
                "description": "The models, the default first.",
                "content": {JSON: {"schema": _ref("ListModelsResponse")}},
            },
            **_errors("400", "401", "403", "500", "503"),
        },
    }
    components: dict[str, Any] = {"schemas": _schemas(models)}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "simple-diffusion",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {"/v1/generate": {"post": generate}, "/v1/models": {"get": list_models}},
        "components": components,
    }
    if needs_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _schemas(models: pb.ListModelsResponse | None) -> dict[str, Any]:
    schemas = message_schemas(pb.GenerateResponse.DESCRIPTOR, pb.ListModelsResponse.DESCRIPTOR)
    return {**schemas, "GenerateRequest": _request_schema(models), "Error": _ERROR_SCHEMA}


def _request_schema(models: pb.ListModelsResponse | None) -> dict[str, Any]:
    schema = GenerateBody.model_json_schema()
    fields = schema["properties"]
    for field in fields.values():
        del field["default"], field["title"]
    schema["required"] = ["label"]
    fields["seed"] = {
        "description": fields["seed"]["description"],
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": fields["seed"]["maximum"]},
            {"type": "string", "pattern": SEED_PATTERN},
        ],
    }
    fields["sampler"]["enum"] = pb.Sampler.keys()
    fields["format"]["enum"] = pb.ImageFormat.keys()
    fields["label"]["minimum"] = fields["first_index"]["minimum"] = 0
    fields["count"]["minimum"] = fields["num_steps"]["minimum"] = 1
    fields["preview_every"]["minimum"] = 0
    fields["guidance_scale"]["minimum"] = 0
    fields["first_index"]["maximum"] = MAX_INDEX
    if models is not None:
        fields["label"]["maximum"] = max(len(model.label_names) for model in models.models) - 1
        fields["count"]["maximum"] = models.max_images_per_request
        fields["model"]["enum"] = ["", *(model.name for model in models.models)]
        fields["num_steps"]["maximum"] = max(model.num_train_timesteps for model in models.models)
        fields["guidance_scale"]["maximum"] = models.max_guidance_scale
    return schema


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": "header", "name": name, "description": description, "schema": schema}


def _errors(*statuses: str) -> dict[str, Any]:
    content = {JSON: {"schema": _ref("Error")}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


# Of each event.
_EVENT_SCHEMA = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["image", "preview", "summary", "error"]},
        "data": {"type": "string", "contentMediaType": JSON},
    },
}

_ERROR_SCHEMA = {
    "type": "object",
    "description": "google.rpc.Status as JSON; code is the HTTP status, status the gRPC one.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "status", "message", "details"],
            "properties": {
                "code": {"type": "integer"},
                "status": {"type": "string"},
                "message": {"type": "string"},
                "details": {
                    "type": "array",
                    "items": {"type": "object", "required": ["@type"]},
                    "description": "google.rpc.BadRequest with field_violations, RetryInfo, ...",
                },
            },
        }
    },
}
