// The product of gemm.cuh on tensor cores, of float32 matrices:
//
//     C(i, j) = Σ_p A(i, p) B(p, j),   i < m, j < n, p in [p_begin, p_end)
//
// Factors are those of factors.cuh.
//
// Tiling. A block makes BM × BN of C, BK of the sum at a time; each of its warps WM × WN, as 16 × 8
// matrices of `mma`, or SHARERS warps do, which share the steps of the sum. Slices come by
// asynchronous copies of 16 bytes, of 4 where rows are no multiples of 16, into BUFFERS in turn: all
// but one are on their way while that is used, and one barrier a slice is enough. They lie as in
// memory, by lines with a padding of 16 or 32 bytes: then the 32 numbers of a fragment that a warp
// reads at once are in 32 banks, and so are the chunks of 16 bytes that arrive
// (tests/kernels/test_accesses.py counts them). A fragment of bf16 takes any four steps of the sum for
// its own four, the same of A and of B, and so reads as one of TF32 does.
//
// Sums of less than `long_sum` steps are formed by plain multiply-adds where nothing is rounded.
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

template <int BM_, int BN_, int BK_, int WM_, int WN_, class Factors_, int SHARERS = 1,
          int BUFFERS = 3>
struct TensorTile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_;
  static constexpr int sharers = SHARERS, buffers = BUFFERS;
  using Factors = Factors_;
  static constexpr bool on_tensor_cores = true;
  static constexpr int warps_across = BN / WN, parts = BM / WM * warps_across;
  static constexpr int threads = 32 * parts * sharers;
  // With 96 sums a thread three blocks of 128 threads fit, with 64 four.
  __device__ static constexpr int blocks(int) { return Factors::cuts ? 4 : 3; }
  static_assert(BK % (Factors::steps * SHARERS) == 0 && WM % 16 == 0 && WN % 8 == 0,
                "whole fragments");
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
      // A line of p has an odd number of chunks: those of 8 lines are in all banks. Of i they are
      // neighbours, of every other line where it has but four.
      const int l = by_p          ? c % 8 + c / (8 * chunks) * 8
                    : chunks == 4 ? c / 16 * 4 + c / 8 % 2 + c / 4 % 2 * 2
                                  : c / chunks;
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

// The slices of a block, in shared memory.
template <class Tile, Contiguous a_order, Contiguous b_order> struct TensorSlicesOf {
  using A = TensorSlices<Tile::BM, Tile::BK, Tile::threads, a_order>;
  using B = TensorSlices<Tile::BN, Tile::BK, Tile::threads, b_order>;
  struct Slice {
    alignas(16) typename A::Buffer a;
    alignas(16) typename B::Buffer b;
  };
  // The result on its way out, of each sharer; padded so that no two pairs are in one bank.
  using Staged = float[Tile::sharers][Tile::BM][Tile::BN + 8];
  union {
    Slice slices[Tile::buffers];
    Staged staged;
  };
};

// The tile of C from (first_row, first_column) on; fetch, epilogue and of_a as in `gemm`. Shared
// memory may be used again after a barrier.
template <class Tile, Contiguous a_order, Contiguous b_order, class Fetch, class Epilogue, class OfA>
__device__ __forceinline__ void tensor_tile(TensorSlicesOf<Tile, a_order, b_order>& shared,
                                            const float* A, const float* B, int first_row,
                                            int first_column, int m, int n, int p_begin, int p_end,
                                            int a_stride, int b_stride, Fetch fetch,
                                            Epilogue epilogue, OfA of_a) {
  using Factors = typename Tile::Factors;
  using Slices = TensorSlicesOf<Tile, a_order, b_order>;
  using A_slices = typename Slices::A;
  using B_slices = typename Slices::B;
  constexpr int rows = Tile::WM / 16, columns = Tile::WN / 8;  // in 16 × 8 matrices
  constexpr int ahead = Tile::buffers - 1;

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int sharer = Tile::sharers == 1 ? 0 : warp / Tile::parts;  // known to the compiler, if 0
  const int part = warp - sharer * Tile::parts;
  const int row = part / Tile::warps_across * Tile::WM;  // of this warp's first, in the tile
  const int column = part % Tile::warps_across * Tile::WN;
  const bool plainly = !Factors::cuts && p_end - p_begin < long_sum;

  const A_slices a_slices(A, first_row, m, a_stride);
  const B_slices b_slices(B, first_column, n, b_stride);
  typename Factors::Sum sum[rows][columns];
  AsyncCopies copies;

  auto start = [&](typename Slices::Slice& slice, int p) {
    if (p < p_end) {
      a_slices.copy(slice.a, p, p_end - p, copies);
      b_slices.copy(slice.b, p, p_end - p, copies);
    }
    copies.commit();
  };
#pragma unroll
  for (int s = 0; s < ahead; ++s) start(shared.slices[s], p_begin + s * Tile::BK);
  int current = 0;
#pragma unroll 1
  for (int p = p_begin; p < p_end; p += Tile::BK) {
    copies.template wait<ahead - 1>();
    __syncthreads();  // this slice is here for all, and the one before has been read
    start(shared.slices[current == 0 ? ahead : current - 1], p + ahead * Tile::BK);
    const auto& slice = shared.slices[current];
    if (plainly) {
      if constexpr (!Factors::cuts) {
#pragma unroll 1
        for (int q = sharer; q < min(Tile::BK, p_end - p); q += Tile::sharers)
#pragma unroll
          for (int r = 0; r < rows; ++r) {
            const float upper = A_slices::read(slice.a, row + 16 * r + g, q);
            const float lower = A_slices::read(slice.a, row + 16 * r + g + 8, q);
#pragma unroll
            for (int c = 0; c < columns; ++c)
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const float other = B_slices::read(slice.b, column + 8 * c + 2 * t + e, q);
                sum[r][c].add(e, upper, other);
                sum[r][c].add(e + 2, lower, other);
              }
          }
      }
    } else {
#pragma unroll
      for (int first = 0; first < Tile::BK; first += Factors::steps * Tile::sharers) {
        const int q = first + sharer * Factors::steps;
        typename Factors::template Fragment<2> b[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c)
          b[c].load([&](int s, float(&x)[2]) {
            const int j = column + 8 * c + g;
            x[0] = B_slices::read(slice.b, j, q + s + t);
            x[1] = B_slices::read(slice.b, j, q + s + t + 4);
          });
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          typename Factors::template Fragment<4> a;
          a.load([&](int s, float(&x)[4]) {
            const int i = row + 16 * r + g;
            x[0] = A_slices::read(slice.a, i, q + s + t);
            x[1] = A_slices::read(slice.a, i + 8, q + s + t);
            x[2] = A_slices::read(slice.a, i, q + s + t + 4);
            x[3] = A_slices::read(slice.a, i + 8, q + s + t + 4);
          });
#pragma unroll
          for (int c = 0; c < columns; ++c) sum[r][c].multiply(a, b[c]);
        }
      }
#pragma unroll
      for (auto& line : sum)
#pragma unroll
        for (auto& one : line) one.end_slice();
    }
    if constexpr (!is_nothing<OfA>) {
      // Half a warp has a line of 16, and the other half the next but one, which is in other banks.
      const int own = thread / Tile::BM;
      const int first = Tile::BM == 16 ? own / 4 * 4 + own % 2 * 2 + own / 2 % 2 : own;
      if (first_column == 0)
        for (int q = first; q < Tile::BK; q += Tile::threads / Tile::BM)
          of_a(A_slices::read(slice.a, thread % Tile::BM, q));
    }
    current = current == ahead ? 0 : current + 1;
  }
  copies.template wait<0>();
  __syncthreads();  // all slices have been read

  // The tile leaves through shared memory, so that a warp's accesses in the epilogue are neighbours.
  auto& staged = shared.staged;
#pragma unroll
  for (int r = 0; r < rows; ++r)
#pragma unroll
    for (int c = 0; c < columns; ++c)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        reinterpret_cast<float2&>(
            staged[sharer][row + 16 * r + g + 8 * lower][column + 8 * c + 2 * t]) = {
            sum[r][c].total(2 * lower), sum[r][c].total(2 * lower + 1)};
  __syncthreads();
  // A thread has every `apart`-th row of one column.
  constexpr int apart = Tile::threads / Tile::BN;
  constexpr int at_once = 4;  // whose reads are on their way together
  static_assert(apart * Tile::BN == Tile::threads, "whole rows are apart");
  const int y = thread % Tile::BN, j = first_column + y;
  const int end = j < n ? min(Tile::BM, m - first_row) : 0;
#pragma unroll 1
  for (int first = thread / Tile::BN; first < end; first += at_once * apart) {
    decltype(fetch(0, 0)) fetched[at_once];
#pragma unroll
    for (int u = 0; u < at_once; ++u)
      if (first + u * apart < end) fetched[u] = fetch(first_row + first + u * apart, j);
#pragma unroll
    for (int u = 0; u < at_once; ++u) {
      const int x = first + u * apart, i = first_row + x;
      if (x >= end) break;
      float value = staged[0][x][y];
#pragma unroll
      for (int other = 1; other < Tile::sharers; ++other) value += staged[other][x][y];
      if (!Factors::cuts && !(fabsf(value) <= 3.4028235e38f))
        value = plain_sum<a_order, b_order>(A, B, i, j, p_begin, p_end, a_stride, b_stride);
      epilogue(i, j, value, fetched[u]);
    }
  }
}

// A block's tile of a grid (⌈m/BM⌉, ⌈n/BN⌉).
template <class Tile, Contiguous a_order, Contiguous b_order, class Fetch, class Epilogue, class OfA>
__device__ void tensor_gemm(const float* A, const float* B, int m, int n, int p_begin, int p_end,
                            int a_stride, int b_stride, Fetch fetch, Epilogue epilogue, OfA of_a) {
  __shared__ TensorSlicesOf<Tile, a_order, b_order> shared;
  tensor_tile<Tile, a_order, b_order>(shared, A, B, blockIdx.x * Tile::BM, blockIdx.y * Tile::BN, m,
                                      n, p_begin, p_end, a_stride, b_stride, fetch, epilogue, of_a);
}
