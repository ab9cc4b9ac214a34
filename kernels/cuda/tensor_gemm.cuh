// The product of gemm.cuh on tensor cores, of float32 matrices:
//
//     C(i, j) = Σ_p A(i, p) B(p, j),   i < m, j < n, p in [p_begin, p_end)
//
// Factors are those of factors.cuh.
//
// Tiling. A block makes BM × BN of C, BK of the sum at a time; each of its (BM/WM) · (BN/WN) warps
// WM × WN, as 16 × 8 matrices of `mma`. Slices come by asynchronous copies of 16 bytes, of 4 where
// rows are no multiples of 16, into three buffers in turn: two are on their way while one is used, and
// one barrier a slice is enough. They lie as in memory, by lines with a padding of 16 or 32 bytes:
// then the 32 numbers of a fragment that a warp reads at once are in 32 banks, and so are the chunks
// of 16 bytes that arrive (tests/kernels/test_accesses.py counts them). A fragment of bf16 takes any
// four steps of the sum for its own four, the same of A and of B, and so reads as one of TF32 does.
//
// Time, 64 × 64 × 16 with warps of 32 × 32, a slice, a multiprocessor of an H100 (mma.sync at 0.62 of
// 1024 TF32 multiply-adds a cycle, three blocks at once): 4 warps · 48 mma.m16n8k8 take 309 cycles for
// Tf32x3, a third of that for Tf32; fragments 4 · 32 wavefronts, copies 64 more, at one a cycle:
// Tf32x3 is bound by its tensor cores (0.62), Tf32 by shared memory.
//
// The sum has one order, so the same launch gives the same bits.
#pragma once

#include "factors.cuh"
#include "operand.cuh"
#include "primitives/async_copy.cuh"

template <int BM_, int BN_, int BK_, int WM_, int WN_, class Factors_> struct TensorTile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_;
  using Factors = Factors_;
  static constexpr bool on_tensor_cores = true;
  static constexpr int warps_across = BN / WN, threads = 32 * (BM / WM) * warps_across;
  // With 96 sums a thread three blocks of 128 threads fit, with 64 four.
  __device__ static constexpr int blocks(int) { return Factors::cuts ? 4 : 3; }
  static_assert(BK % Factors::steps == 0 && WM % 16 == 0 && WN % 8 == 0, "whole fragments");
};

// One operand's slices in shared memory, EXTENT × BK numbers each, as they lie in memory: a line is
// what lies together, BK numbers of one i where p is contiguous, EXTENT of one p otherwise.
template <int EXTENT, int BK, int THREADS, Contiguous order> struct TensorSlices {
  static constexpr bool by_p = order == Contiguous::p;
  static constexpr int line = by_p ? BK : EXTENT, lines = by_p ? EXTENT : BK;
  static constexpr int width = line + (by_p ? 4 : 8), chunks = line / 4;
  static constexpr int share = lines * chunks / THREADS;
  static_assert(lines * chunks % THREADS == 0, "every thread copies as many chunks");
  static_assert(lines % 8 == 0, "eight lanes copy a chunk of eight lines");
  using Buffer = float[lines][width];

  const float* matrix;
  int first, extent, stride;
  bool by_chunks;

  __device__ TensorSlices(const float* matrix, int first, int end, int stride)
      : matrix(matrix),
        first(first),
        extent(end - first),
        stride(stride),
        by_chunks(size_t(matrix) % 16 == 0 && stride % 4 == 0) {}

  // Starts the copies of the slice from p on, of which `left` steps are inside of the matrix; what is
  // not is 0.
  __device__ void copy(Buffer& to, int p, int left, AsyncCopies& copies) const {
#pragma unroll
    for (int r = 0; r < share; ++r) {
      const int c = threadIdx.x + r * THREADS;
      // Chunks of p are 5 to a line: of 8 lines they are in all banks. Of i they are neighbours.
      const int l = by_p ? c % 8 + c / (8 * chunks) * 8 : c / chunks;
      const int at = 4 * (by_p ? c / 8 % chunks : c % chunks);
      const int rest = (by_p ? (l < extent ? left : 0) : (l < left ? extent : 0)) - at;
      const float* from = matrix + (by_p ? size_t(first + l) * stride + p + at
                                         : size_t(p + l) * stride + first + at);
      float* place = &to[l][at];
      if (by_chunks && rest >= 4) {
        copies.copy<16>(place, from);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (e < rest)
            copies.copy<4>(place + e, from + e);
          else
            place[e] = 0;
        }
      }
    }
  }

  __device__ static float read(const Buffer& buffer, int i, int p) {
    return by_p ? buffer[i][p] : buffer[p][i];
  }
};

// Σ_p A(i, p) B(p, j) by multiply-adds in order, as gemm.cuh's plain cores would have it.
template <Contiguous a_order, Contiguous b_order>
__device__ float plain_sum(const float* A, const float* B, int i, int j, int p_begin, int p_end,
                           int a_stride, int b_stride) {
  float sum = 0;
#pragma unroll 1
  for (int p = p_begin; p < p_end; ++p)
    sum += A[a_order == Contiguous::p ? size_t(i) * a_stride + p : size_t(p) * a_stride + i] *
           B[b_order == Contiguous::p ? size_t(j) * b_stride + p : size_t(p) * b_stride + j];
  return sum;
}

// epilogue and of_a as in `gemm`.
template <class Tile, Contiguous a_order, Contiguous b_order, class Epilogue, class OfA>
__device__ void tensor_gemm(const float* A, const float* B, int m, int n, int p_begin, int p_end,
                            int a_stride, int b_stride, Epilogue epilogue, OfA of_a) {
  using Factors = typename Tile::Factors;
  using A_slices = TensorSlices<Tile::BM, Tile::BK, Tile::threads, a_order>;
  using B_slices = TensorSlices<Tile::BN, Tile::BK, Tile::threads, b_order>;
  struct Stage {
    alignas(16) typename A_slices::Buffer a;
    alignas(16) typename B_slices::Buffer b;
  };
  constexpr int rows = Tile::WM / 16, columns = Tile::WN / 8;  // in 16 × 8 matrices
  constexpr int width = Tile::WN + 8;  // of a warp's rows on their way out: no two pairs in one bank
  constexpr int warps = Tile::threads / 32;
  constexpr int staged_bytes = warps * 16 * width * sizeof(float);
  __shared__ alignas(16) Stage stages[3];
  static_assert(staged_bytes <= sizeof(stages), "staging fits");

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
  const int row = warp / Tile::warps_across * Tile::WM;  // of this warp's first, in the tile
  const int column = warp % Tile::warps_across * Tile::WN;

  const A_slices a_slices(A, first_row, m, a_stride);
  const B_slices b_slices(B, first_column, n, b_stride);
  typename Factors::Sum sum[rows][columns];
  AsyncCopies copies;

  auto start = [&](Stage& stage, int p) {
    if (p < p_end) {
      a_slices.copy(stage.a, p, p_end - p, copies);
      b_slices.copy(stage.b, p, p_end - p, copies);
    }
    copies.commit();
  };
  start(stages[0], p_begin);
  start(stages[1], p_begin + Tile::BK);
  int current = 0;
  for (int p = p_begin; p < p_end; p += Tile::BK) {
    copies.wait<1>();
    __syncthreads();  // this slice is here for all, and the one before has been read
    start(stages[current == 0 ? 2 : current - 1], p + 2 * Tile::BK);
    const Stage& stage = stages[current];
#pragma unroll
    for (int q = 0; q < Tile::BK; q += Factors::steps) {
      typename Factors::template Fragment<2> b[columns];
#pragma unroll
      for (int c = 0; c < columns; ++c)
        b[c].load([&](int s, float(&x)[2]) {
          const int j = column + 8 * c + g;
          x[0] = B_slices::read(stage.b, j, q + s + t);
          x[1] = B_slices::read(stage.b, j, q + s + t + 4);
        });
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        typename Factors::template Fragment<4> a;
        a.load([&](int s, float(&x)[4]) {
          const int i = row + 16 * r + g;
          x[0] = A_slices::read(stage.a, i, q + s + t);
          x[1] = A_slices::read(stage.a, i + 8, q + s + t);
          x[2] = A_slices::read(stage.a, i, q + s + t + 4);
          x[3] = A_slices::read(stage.a, i + 8, q + s + t + 4);
        });
#pragma unroll
        for (int c = 0; c < columns; ++c) sum[r][c].multiply(a, b[c]);
      }
    }
#pragma unroll
    for (auto& line : sum)
#pragma unroll
      for (auto& one : line) one.end_slice();
    if constexpr (!is_nothing<OfA>) {
      if (blockIdx.y == 0)
        for (int q = thread / Tile::BM; q < Tile::BK; q += Tile::threads / Tile::BM)
          of_a(A_slices::read(stage.a, thread % Tile::BM, q));
    }
    current = current == 2 ? 0 : current + 1;
  }
  copies.wait<0>();
  __syncthreads();  // all slices have been read

  // A warp's rows leave through shared memory, 16 at a time, so that its accesses in the epilogue are
  // neighbours, and σ is compiled WM / 16 times.
  auto& staged = reinterpret_cast<float(&)[warps][16][width]>(stages);
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    __syncwarp();  // the rows before have left
#pragma unroll
    for (int c = 0; c < columns; ++c)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        reinterpret_cast<float2&>(staged[warp][g + 8 * lower][8 * c + 2 * t]) = {
            sum[r][c].total(2 * lower), sum[r][c].total(2 * lower + 1)};
    __syncwarp();
#pragma unroll 1
    for (int e = lane; e < 16 * Tile::WN; e += 32) {
      const int i = first_row + row + 16 * r + e / Tile::WN;
      const int j = first_column + column + e % Tile::WN;
      if (i >= m || j >= n) continue;
      float value = staged[warp][e / Tile::WN][e % Tile::WN];
      if (!Factors::cuts && !(fabsf(value) <= 3.4028235e38f))
        value = plain_sum<a_order, b_order>(A, B, i, j, p_begin, p_end, a_stride, b_stride);
      epilogue(i, j, value);
    }
  }
}
