"""Engines: each runs an epoch of training. `layered` is the reference for all others."""
