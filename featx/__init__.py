"""Transfer learning on frozen features: extract once, cache, compare honestly."""

__version__ = "0.1.0"
