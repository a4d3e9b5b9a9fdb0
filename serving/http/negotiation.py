"""What a caller sends and wants to have back, by its headers."""

JSON = "application/json"
PNG = "image/png"
EVENTS = "text/event-stream"


def chosen(accept: str | None, offered: tuple[str, ...]) -> str | None:
    """Returns the media type that a caller likes best, the first offered of equals; None: none.

    Args:
        accept: the header; without one everything is liked.
        offered: media types.
    """
    ranges = [_media_range(part) for part in (accept or "*/*").split(",")]
    best = max(offered, key=lambda kind: _quality(kind, ranges))
    return best if _quality(best, ranges) > 0 else None


def is_json(content_type: str | None) -> bool:
    """Whether a body is said to be JSON."""
    return (content_type or "").partition(";")[0].strip().lower() == JSON


def _media_range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return kind, quality


def _quality(kind: str, ranges: list[tuple[str, float]]) -> float:
    """The quality of the narrowest range that a kind is in."""
    qualities = dict(ranges)
    for wider in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if wider in qualities:
            return qualities[wider]
    return 0.0
