"""How HTTP callers are told what did not work: google.rpc.Status as JSON, under "error"."""

import math
from typing import Any

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from serving.http.answers import as_json
from serving.refusal import RefusedError

HTTP_STATUSES = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""As google.rpc.Code has it."""

# What goes wrong before a request reaches a method has an HTTP status only.
_NAMES = {
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    406: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
}


def refused_fields(refused: RefusedError) -> dict[str, Any]:
    """Returns the JSON for a refusal."""
    status = HTTP_STATUSES[refused.code]
    details = as_json(refused.status)["details"]
    return {"error": _error(status, refused.code.name, refused.message, details)}


def refused_response(refused: RefusedError) -> JSONResponse:
    """Returns the answer for a refusal."""
    headers = {}
    if refused.retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(refused.retry_after_seconds))
    if refused.code is grpc.StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refused_fields(refused), HTTP_STATUSES[refused.code], headers)


def http_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns the answer for what is no request of the API at all."""
    name = _NAMES.get(status, "UNKNOWN")
    return JSONResponse({"error": _error(status, name, message, [])}, status, headers)


async def on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """Answers for Starlette: nothing there, or not with this method."""
    assert isinstance(error, HTTPException)
    headers = None if error.headers is None else dict(error.headers)
    return http_response(error.status_code, error.detail, headers)


def _error(status: int, name: str, message: str, details: list[Any]) -> dict[str, Any]:
    return {"code": status, "status": name, "message": message, "details": details}
