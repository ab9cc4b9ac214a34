"""C++ for the CPU: an epoch in one call, from the formulas that the CUDA kernels share."""
