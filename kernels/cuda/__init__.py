"""CUDA C++ sources, compiled at run time by ``backprop_gpu.cuda.compiler``."""
