"""Runs the CUDA C++ kernels, unchanged, as ordinary C++ on the CPU.

`fibers.h` has the picture: what a thread, a block and a barrier are on the host.
"""
