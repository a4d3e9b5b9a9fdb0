"""The HTTP edge: probes and metrics, the JSON API, and the playground."""
