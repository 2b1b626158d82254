"""What `benchmarks/gpu.py` does: one module a step or two, and what runs and records them."""
