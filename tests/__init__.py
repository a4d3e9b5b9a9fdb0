"""Makes `tests.tiny_bundle` this one, whatever other package of that name is installed."""
