"""Everything that touches a CUDA driver: `runtime` through cuda.core, `blas` through cuBLASLt.

`arrays.DeviceArray` is what they work on. Nothing in here needs CuPy.
"""
