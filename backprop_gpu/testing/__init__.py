"""CUDA on a machine without a GPU: device code as C++ on the CPU (``emulator``).

``emulator/fibers.h`` has the picture: what a thread, a block and a barrier are on the host.
"""
