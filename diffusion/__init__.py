"""The mathematics of diffusion: schedules, sampling plans, noise and a reference loop.

Imports NumPy and the standard library only.
"""
