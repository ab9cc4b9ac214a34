"""Numba CUDA kernels for the four equations, one file per equation, written to be read.

Batches are row-major: a, z, δ of a layer are (m, n), one sample per row; w is
(n, k), w_jk leading from neuron k of the layer before to neuron j; b is (n,).

Kernels come from factories, ``make_forward(sigma, T, …)``, because a Numba kernel
takes device functions and the dtype of its shared memory from its closure. T is
Numba's float32 or float64, and every constant is made with it: a bare 0.5 is a
float64 and would turn float32 arithmetic into double precision, a bare 1 likewise
(int64 with float32 gives float64).

Maps and products run in TILE × TILE blocks. Blocks are counted along rows in x,
which has no practical limit, and along columns in y; threads along columns in x,
so that neighbouring threads touch neighbouring addresses:

    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    j = cuda.blockIdx.y * TILE + cuda.threadIdx.x

Flat arrays run in blocks of BLOCK threads. Every sum has an order fixed by the
shapes alone, so the same input gives the same bits.
"""

TILE = 16
BLOCK = 128
