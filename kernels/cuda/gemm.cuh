// The tiled matrix product under forward, BP2 and BP4, on the plain cores (tensor_gemm.cuh has it on
// tensor cores):
//
//     C(i, j) = Σ_p A(i, p) B(p, j),   i < m, j < n, p in [p_begin, p_end)
//
// Tiling. A block computes a BM × BN tile of C, BK of the sum at a time, with
// (BM/TM) · (BN/TN) threads, each holding TM × TN sums in registers. Slices of
// A and B go through shared memory, stored by p, so that a thread reads its TM
// and TN factors with 16-byte loads; rows are padded by 16 bytes to spread the
// transposing stores over the banks. Two buffers alternate: while a slice is
// used the next one is on its way into registers, and one barrier a slice is
// enough. A thread's rows and columns come in runs of 16 bytes, a run every
// BM / (TM / run): neighbouring threads read neighbouring runs.
//
// Kernels name the blocks that a multiprocessor must hold, `least_blocks`: left to itself the
// assembler aims at more than help, and spills for them. With 64 float sums per thread they are two,
// 128 registers per thread: one computes while the other waits at its barrier or for memory.
//
// The sum over p runs in one fixed order, so the same launch gives the same bits.
#pragma once

#include "operand.cuh"
#include "run.cuh"
#include "tensor_gemm.cuh"

template <int BM_, int BN_, int BK_, int TM_, int TN_> struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_;
  static constexpr int rows_of_threads = BM / TM, columns_of_threads = BN / TN;
  static constexpr int threads = rows_of_threads * columns_of_threads;
  // Steps of the sum that a thread may read ahead: 64 sums leave registers for two.
  static constexpr int ahead = TM * TN < 64 ? BK : 2;
  static constexpr bool on_tensor_cores = false;
  __device__ static constexpr int blocks(int number) { return TM * TN * number == 256 ? 2 : 1; }
};

// One operand's slices: EXTENT × BK elements, each thread moving its share.
//
// What lies together in memory is a line: BK elements where p is contiguous, EXTENT otherwise. A
// thread's elements stand at one place of every `apart`-th line, so that a warp reads neighbours,
// and a pointer that walks is all that a thread keeps to find them.
template <class T, int EXTENT, int BK, int THREADS, Contiguous order> struct Slice {
  static constexpr int share = EXTENT * BK / THREADS;
  static constexpr int width = EXTENT + 16 / sizeof(T);
  static constexpr int line = order == Contiguous::p ? BK : EXTENT;
  static constexpr int apart = THREADS / line;
  static_assert(EXTENT * BK % THREADS == 0, "every thread moves the same number of elements");
  static_assert(THREADS % line == 0, "all of them at one place of their lines");
  using Buffer = T[BK][width];

  int i, q;       // of this thread's first element, in a slice
  int extent;     // of the matrix, from the slice's first i on
  size_t step;    // from one of this thread's elements to the next
  const T* next;  // the first of them in the slice to come
  T staged[share];

  __device__ Slice(const T* matrix, int thread, int first, int end, int p, int stride)
      : i(order == Contiguous::p ? thread / line : thread % line),
        q(order == Contiguous::p ? thread % line : thread / line),
        extent(end - first),
        step(size_t(apart) * stride),
        next(matrix + (order == Contiguous::p ? size_t(first + i) * stride + (p + q)
                                              : size_t(p + q) * stride + (first + i))) {}

  // The slice to come, from memory into registers; zeros outside of the matrix and beyond the
  // `left` steps of the sum that remain.
  __device__ void fetch(int left) {
    const T* at = next;
#pragma unroll
    for (int r = 0; r < share; ++r) {
      const bool inside = order == Contiguous::p ? i + r * apart < extent && q < left
                                                 : i < extent && q + r * apart < left;
      staged[r] = inside ? *at : T(0);
      at += step;
    }
    next = order == Contiguous::p ? next + BK : at;
  }

  template <class Each = Nothing> __device__ void store(Buffer& buffer, Each each = {}) const {
#pragma unroll
    for (int r = 0; r < share; ++r) {
      if (order == Contiguous::p)
        buffer[q][i + r * apart] = staged[r];
      else
        buffer[q + r * apart][i] = staged[r];
      each(staged[r]);
    }
  }
};

template <class T, class Tile, Contiguous a_order, Contiguous b_order, class Fetch, class Epilogue,
          class OfA>
__device__ void plain_gemm(const T* A, const T* B, int m, int n, int p_begin, int p_end,
                           int a_stride, int b_stride, Fetch fetch, Epilogue epilogue, OfA of_a) {
  using A_slice = Slice<T, Tile::BM, Tile::BK, Tile::threads, a_order>;
  using B_slice = Slice<T, Tile::BN, Tile::BK, Tile::threads, b_order>;
  constexpr int per_16_bytes = 16 / sizeof(T);
  constexpr int RM = Tile::TM < per_16_bytes ? Tile::TM : per_16_bytes;
  constexpr int RN = Tile::TN < per_16_bytes ? Tile::TN : per_16_bytes;
  constexpr int row_step = Tile::rows_of_threads * RM, column_step = Tile::columns_of_threads * RN;

  __shared__ alignas(16) typename A_slice::Buffer a_tile[2];
  __shared__ alignas(16) typename B_slice::Buffer b_tile[2];

  const int thread = threadIdx.x;
  const int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
  const int row = thread / Tile::columns_of_threads * RM;     // of this thread's first run
  const int column = thread % Tile::columns_of_threads * RN;  // in the tile

  A_slice a_slice(A, thread, first_row, m, p_begin, a_stride);
  B_slice b_slice(B, thread, first_column, n, p_begin, b_stride);
  T sum[Tile::TM][Tile::TN] = {};

  int left = p_end - p_begin;
  a_slice.fetch(left);
  b_slice.fetch(left);
  a_slice.store(a_tile[0], of_a);
  b_slice.store(b_tile[0]);
  __syncthreads();

  int current = 0;
  for (; left > 0; left -= Tile::BK) {
    const bool more = left > Tile::BK;
    if (more) {
      a_slice.fetch(left - Tile::BK);
      b_slice.fetch(left - Tile::BK);
    }
#pragma unroll Tile::ahead
    for (int q = 0; q < Tile::BK; ++q) {
      alignas(16) T a[Tile::TM];
      alignas(16) T b[Tile::TN];
#pragma unroll
      for (int g = 0; g < Tile::TM / RM; ++g)
        reinterpret_cast<Run<T, RM>*>(a)[g] =
            *reinterpret_cast<const Run<T, RM>*>(&a_tile[current][q][g * row_step + row]);
#pragma unroll
      for (int g = 0; g < Tile::TN / RN; ++g)
        reinterpret_cast<Run<T, RN>*>(b)[g] =
            *reinterpret_cast<const Run<T, RN>*>(&b_tile[current][q][g * column_step + column]);
#pragma unroll
      for (int i = 0; i < Tile::TM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::TN; ++j) sum[i][j] += a[i] * b[j];
    }
    if (more) {
      // The other buffer was last read before the barrier of the slice before.
      a_slice.store(a_tile[current ^ 1], of_a);
      b_slice.store(b_tile[current ^ 1]);
      __syncthreads();
      current ^= 1;
    }
  }

  // The tile leaves through shared memory, one of each thread's rows at a time, so that a
  // warp's accesses in the epilogue are neighbours, and σ is compiled TM times and not TM · TN.
  static_assert(sizeof(T) * Tile::rows_of_threads * Tile::BN <= sizeof(a_tile), "staging fits");
  auto& staged = reinterpret_cast<T(&)[Tile::rows_of_threads][Tile::BN]>(a_tile);
#pragma unroll
  for (int i = 0; i < Tile::TM; ++i) {
    __syncthreads();  // a_tile has been read
#pragma unroll
    for (int j = 0; j < Tile::TN; ++j)
      staged[row / RM][j / RN * column_step + column + j % RN] = sum[i][j];
    __syncthreads();
#pragma unroll 1
    for (int e = thread; e < Tile::rows_of_threads * Tile::BN; e += Tile::threads) {
      const int result_row = first_row + i / RM * row_step + e / Tile::BN * RM + i % RM;
      const int result_column = first_column + e % Tile::BN;
      if (result_row < m && result_column < n)
        epilogue(result_row, result_column, staged[e / Tile::BN][e % Tile::BN],
                 fetch(result_row, result_column));
    }
  }
}

// epilogue(i, j, C(i, j), fetch(i, j)) is called once for every element of the result; what it needs
// of memory is in `fetch`, which may be called for several elements before. Where A has the result
// contiguous, of_a(A(i, p)) is called for every element of A's slices, zeros outside of the matrix
// included, by blocks (x, 0) at least: thread h gets those of i = first + h % BM.
//
// A with p contiguous has rows of `a_stride` elements, one row an i; with the
// result contiguous, one row a p. B likewise with j.
template <class T, class Tile, Contiguous a_order, Contiguous b_order, class Fetch, class Epilogue,
          class OfA = Nothing>
__device__ void gemm(const T* A, const T* B, int m, int n, int p_begin, int p_end, int a_stride,
                     int b_stride, Fetch fetch, Epilogue epilogue, OfA of_a = {}) {
  if constexpr (Tile::on_tensor_cores)
    tensor_gemm<Tile, a_order, b_order>(A, B, m, n, p_begin, p_end, a_stride, b_stride, fetch,
                                        epilogue, of_a);
  else
    plain_gemm<T, Tile, a_order, b_order>(A, B, m, n, p_begin, p_end, a_stride, b_stride, fetch,
                                          epilogue, of_a);
}
