"""Training of the class-conditional DDPM: ``python -m training.train``."""
