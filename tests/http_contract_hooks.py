"""What the OpenAPI document cannot say, for Schemathesis: it loads this module."""

from typing import Any

import schemathesis


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:
    """Leaves out bodies in which two fields, each good by itself, do not go together."""
    if not isinstance(body, dict):
        return True
    first_index, count = body.get("first_index", 0), body.get("count", 1)
    numbers = isinstance(first_index, int) and isinstance(count, int)
    return not numbers or first_index + count <= 2**31


@schemathesis.hook
def before_call(_: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Asks for events where previews are asked for."""
    if isinstance(case.body, dict) and case.body.get("preview_every"):
        case.headers["accept"] = "text/event-stream"
