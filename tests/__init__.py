"""Makes `tests.fakes` this one, whatever other package of that name is installed."""
