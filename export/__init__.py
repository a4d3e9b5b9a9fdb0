"""A checkpoint to a bundle, proved to be the same function: ``python -m export``.

May import training, diffusion and serving.bundle (the manifest's form); nothing else of serving.
"""
