"""Parts of benchmarks/gpu.py: each is a function of a `gpu.Run`."""
