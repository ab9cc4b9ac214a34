// The tiled matrix product under forward, BP2 and BP4:
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
// Kernels name one block a multiprocessor as their least: left to itself the assembler
// aims at more blocks than help, and spills for them.
//
// The sum over p runs in one fixed order, so the same launch gives the same bits.
#pragma once

#include "run.cuh"

template <int BM_, int BN_, int BK_, int TM_, int TN_> struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_;
  static constexpr int rows_of_threads = BM / TM, columns_of_threads = BN / TN;
  static constexpr int threads = rows_of_threads * columns_of_threads;
};

// How an operand lies in memory: with the summed index p contiguous, or with
// the index of the result (i or j) contiguous.
enum class Contiguous { p, result };

struct Nothing {
  template <class T> __device__ void operator()(T) const {}
};

// One operand's slices: EXTENT × BK elements, each thread moving its share.
template <class T, int EXTENT, int BK, int THREADS, Contiguous order> struct Slice {
  static constexpr int share = EXTENT * BK / THREADS;
  static constexpr int width = EXTENT + 16 / sizeof(T);
  static_assert(EXTENT * BK % THREADS == 0, "every thread moves the same number of elements");
  using Buffer = T[BK][width];

  T staged[share];

  // The r-th element of this thread, chosen so that a warp reads neighbours in memory.
  static __device__ int result_index(int thread, int r) {
    const int e = thread + r * THREADS;
    return order == Contiguous::p ? e / BK : e % EXTENT;
  }
  static __device__ int sum_index(int thread, int r) {
    const int e = thread + r * THREADS;
    return order == Contiguous::p ? e % BK : e / EXTENT;
  }

  // From memory into registers; zeros outside of the matrix.
  __device__ void fetch(const T* matrix, int thread, int first, int extent, int p, int p_end,
                        int stride) {
#pragma unroll
    for (int r = 0; r < share; ++r) {
      const int i = first + result_index(thread, r);
      const int q = p + sum_index(thread, r);
      const size_t offset =
          order == Contiguous::p ? size_t(i) * stride + q : size_t(q) * stride + i;
      staged[r] = i < extent && q < p_end ? matrix[offset] : T(0);
    }
  }

  template <class Each = Nothing>
  __device__ void store(Buffer& buffer, int thread, Each each = {}) const {
#pragma unroll
    for (int r = 0; r < share; ++r) {
      buffer[sum_index(thread, r)][result_index(thread, r)] = staged[r];
      each(staged[r]);
    }
  }
};

// epilogue(i, j, C(i, j)) is called once for every element of the result, and of_a(A(i, p)) for
// every element of A's slices by the thread that moves it, zeros outside of the matrix included.
//
// A with p contiguous has rows of `a_stride` elements, one row an i; with the
// result contiguous, one row a p. B likewise with j.
template <class T, class Tile, Contiguous a_order, Contiguous b_order, class Epilogue,
          class OfA = Nothing>
__device__ void gemm(const T* A, const T* B, int m, int n, int p_begin, int p_end, int a_stride,
                     int b_stride, Epilogue epilogue, OfA of_a = {}) {
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

  A_slice a_slice;
  B_slice b_slice;
  T sum[Tile::TM][Tile::TN] = {};

  a_slice.fetch(A, thread, first_row, m, p_begin, p_end, a_stride);
  b_slice.fetch(B, thread, first_column, n, p_begin, p_end, b_stride);
  a_slice.store(a_tile[0], thread, of_a);
  b_slice.store(b_tile[0], thread);
  __syncthreads();

  int current = 0;
  for (int p = p_begin; p < p_end; p += Tile::BK) {
    const bool more = p + Tile::BK < p_end;
    if (more) {
      a_slice.fetch(A, thread, first_row, m, p + Tile::BK, p_end, a_stride);
      b_slice.fetch(B, thread, first_column, n, p + Tile::BK, p_end, b_stride);
    }
#pragma unroll
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
      a_slice.store(a_tile[current ^ 1], thread, of_a);
      b_slice.store(b_tile[current ^ 1], thread);
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
        epilogue(result_row, result_column, staged[e / Tile::BN][e % Tile::BN]);
    }
  }
}
