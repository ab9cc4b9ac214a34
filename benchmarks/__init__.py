"""Measurements. Their records lie in ``results/``; timing is never a test."""

if __name__ != "backprop_gpu.benchmarks":
    raise ImportError("the benchmarks are in the package: python -m backprop_gpu.benchmarks.…")
