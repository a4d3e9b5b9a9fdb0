"""How good a model is: judge networks, metrics, and the table of quality against num_steps."""
