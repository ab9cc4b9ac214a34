// What a block of the fused kernel keeps in shared memory, how its warps share the work, and the
// product of matrices that lie there. planning/fusion.py chooses the numbers; FusedForm::bytes is its
// count of what stands here.
#pragma once

#include "activations.cuh"
#include "factors.cuh"
#include "network.cuh"
#include "operand.cuh"
#include "philox.cuh"
#include "primitives/load_matrix.cuh"
#include "run.cuh"

// Rows of a tile; warps that share them, and those that share their columns; blocks that a
// multiprocessor holds; whether gradients wait in registers for the last tile; bytes of shared memory;
// whether hidden activations are dropped out.
template <int ROWS, int ROW_WARPS, int COLUMN_WARPS, int BLOCKS, bool IN_REGISTERS, int BYTES,
          bool DROPS = false>
struct FusedForm {
  static constexpr int rows = ROWS, row_warps = ROW_WARPS, column_warps = COLUMN_WARPS;
  static constexpr int blocks = BLOCKS, bytes = BYTES;
  static constexpr int warps = ROW_WARPS * COLUMN_WARPS, threads = 32 * warps;
  static constexpr bool in_registers = IN_REGISTERS, drops = DROPS;
};

// A layer of N neurons. SHARERS of the warps share the rows of its ∂C/∂w, the rest their columns.
template <int N, class SIGMA, int SHARERS> struct FusedLayer {
  using Sigma = SIGMA;
  static constexpr int n = N, sharers = SHARERS;
};

// Numbers of a layer as whole fragments have them.
template <int count> constexpr int padded = units_of<count, 16> * 16;

// ------------------------------------------------------------------------------------ matrices

// Factors in shared memory, COLUMNS of them (a multiple of 16) a row. A product takes a matrix either
// by its rows, p along a row, or by its columns, p from row to row; both without bank conflicts. g and
// t are a lane's (primitives/mma.cuh).
//
// Numbers of TF32 are float32 here. Column j of row i stands at j ^ 8 (i mod 4) ^ (i & 4): so do t
// along each of eight rows g, and g along each of four rows t, lie in 32 banks.
template <class Factors, int ROWS, int COLUMNS> struct Matrix {
  static constexpr int width = units_of<COLUMNS, 32> * 32;
  alignas(16) float x[ROWS][width];
  static_assert(Factors::steps == 8, "a fragment is of eight steps of the sum");

  __device__ static int place(int i, int j) { return j ^ (i % 4 * 8) ^ (i & 4); }

  // Numbers (i, j) and on: two, j even, or four, j a multiple of 4.
  template <int N> __device__ void put(int i, int j, const Run<float, N>& numbers) {
    reinterpret_cast<Run<float, N>&>(x[i][place(i, j)]) = numbers;
  }
  __device__ Run<float, 2> get(int i, int j) const {
    return reinterpret_cast<const Run<float, 2>&>(x[i][place(i, j)]);
  }

  // Number p of the sum, of result i.
  template <Contiguous order> __device__ float number(int i, int p) const {
    return order == Contiguous::p ? x[i][place(i, p)] : x[p][place(p, i)];
  }

  template <Contiguous order>
  __device__ void as_a(typename Factors::template Fragment<4>& a, int i, int p) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    a.load([&](int, float(&numbers)[4]) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        numbers[r] = number<order>(i + g + r % 2 * 8, p + t + r / 2 * 4);
    });
  }
  template <Contiguous order>
  __device__ void as_b(typename Factors::template Fragment<2> (&b)[2], int j, int p) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      b[half].load([&](int, float(&numbers)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) numbers[r] = number<order>(j + 8 * half + g, p + t + 4 * r);
      });
  }
};

// Of bf16 two neighbours are a word, and a row has an odd number of 16 bytes: eight rows of an 8 × 8
// matrix, 16 bytes of each, lie in all banks.
template <int ROWS, int COLUMNS> struct Matrix<Bf16, ROWS, COLUMNS> {
  static constexpr int width = (COLUMNS / 8 | 1) * 4;
  alignas(16) unsigned x[ROWS][width];

  template <int N> __device__ void put(int i, int j, const Run<float, N>& numbers) {
    Run<unsigned, N / 2> pairs;
#pragma unroll
    for (int v = 0; v < N / 2; ++v)
      pairs.x[v] = round_bf16(numbers.x[2 * v], numbers.x[2 * v + 1]);
    reinterpret_cast<Run<unsigned, N / 2>&>(x[i][j / 2]) = pairs;
  }
  __device__ Run<float, 2> get(int i, int j) const {
    const unsigned pair = x[i][j / 2];
    return {{__int_as_float(pair << 16), __int_as_float(pair & 0xffff0000u)}};
  }

  template <Contiguous order>
  __device__ void as_a(Bf16::Fragment<4>& a, int i, int p) const {
    load<order>(a.x, i, p, order == Contiguous::p);
  }
  template <Contiguous order>
  __device__ void as_b(Bf16::Fragment<2> (&b)[2], int j, int p) const {
    unsigned four[4];
    load<order>(four, j, p, order != Contiguous::p);
#pragma unroll
    for (int r = 0; r < 4; ++r) b[r / 2].x[r % 2] = four[r];
  }

 private:
  // The 16 × 16 numbers from result i and step p on: of four matrices the second is below the first,
  // or beside it.
  template <Contiguous order>
  __device__ void load(unsigned (&four)[4], int i, int p, bool below) const {
    const int lane = threadIdx.x % 32, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
    const int down = lane % 8 + (below ? second : third), right = below ? third : second;
    if constexpr (order == Contiguous::p)
      load_matrices(four, &x[i + down][(p + right) / 2]);
    else
      load_transposed(four, &x[p + down][(i + right) / 2]);
  }
};

// ------------------------------------------------------------------------------------ products

// UNITS of 16 rows or columns that SHARERS take in turn, one of them from `first` on.
template <int UNITS, int SHARERS> struct Units {
  static constexpr int count = units_of<UNITS, SHARERS>;
  int first;
  __device__ int at(int i) const { return (first + i * SHARERS) * 16; }
  __device__ bool has(int i) const {
    return i < count && (count * SHARERS == UNITS || first + i * SHARERS < UNITS);
  }
};

// A lane's numbers of 16 × 16: two of mma's D, side by side.
using Square = float[2][4];

// z = Σ_p A(i, p) B(p, j) by multiply-adds of the plain cores, in order.
template <int P, Contiguous a_order, Contiguous b_order, class A, class B, class I, class J>
__device__ __forceinline__ void multiply_plainly(Square (&z)[I::count][J::count], const A& a,
                                                 const B& b, I rows, J columns) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < I::count; ++r)
#pragma unroll
    for (int c = 0; c < J::count; ++c) {
      Square sum = {};
      if (rows.has(r) && columns.has(c)) {
#pragma unroll 1
        for (int p = 0; p < P; ++p) {
          const float upper = a.template number<a_order>(rows.at(r) + g, p);
          const float lower = a.template number<a_order>(rows.at(r) + g + 8, p);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float other =
                b.template number<b_order>(columns.at(c) + e / 2 * 8 + 2 * t + e % 2, p);
            sum[e / 2][e % 2] += upper * other;
            sum[e / 2][e % 2 + 2] += lower * other;
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) z[r][c][e / 4][e % 4] = sum[e / 4][e % 4];
    }
}

// z = Σ_p A(i, p) B(p, j), p < P, of a warp's rows and columns. All lanes take part.
template <class Factors, int P, Contiguous a_order, Contiguous b_order, class A, class B, class I,
          class J>
__device__ __forceinline__ void multiply(Square (&z)[I::count][J::count], const A& a, const B& b,
                                         I rows, J columns) {
  if constexpr (!Factors::cuts && P < long_sum) {
    multiply_plainly<P, a_order, b_order>(z, a, b, rows, columns);
    return;
  } else {
    // Columns whose sums grow at once: with those of Tf32x3, three times as many, registers end.
    constexpr int most = Factors::cuts ? 4 : 2, together = J::count < most ? J::count : most;
#pragma unroll
    for (int c0 = 0; c0 < J::count; c0 += together) {
      typename Factors::Sum sum[I::count][together][2];
#pragma unroll 1
      for (int p = 0; p < P; p += 16) {
#pragma unroll
        for (int q = 0; q < 16; q += Factors::steps) {
          typename Factors::template Fragment<2> of_b[together][2];
#pragma unroll
          for (int c = 0; c < together; ++c)
            if (columns.has(c0 + c))
              b.template as_b<b_order>(of_b[c], columns.at(c0 + c), p + q);
#pragma unroll
          for (int r = 0; r < I::count; ++r) {
            if (!rows.has(r)) continue;
            typename Factors::template Fragment<4> of_a;
            a.template as_a<a_order>(of_a, rows.at(r), p + q);
#pragma unroll
            for (int c = 0; c < together; ++c)
              if (columns.has(c0 + c)) {
                sum[r][c][0].multiply(of_a, of_b[c][0]);
                sum[r][c][1].multiply(of_a, of_b[c][1]);
              }
          }
        }
#pragma unroll
        for (int r = 0; r < I::count; ++r)
#pragma unroll
          for (int c = 0; c < together; ++c) {
            sum[r][c][0].end_slice();
            sum[r][c][1].end_slice();
          }
      }
#pragma unroll
      for (int r = 0; r < I::count; ++r)
#pragma unroll
        for (int c = 0; c < together && c0 + c < J::count; ++c)
#pragma unroll
          for (int e = 0; e < 8; ++e)
            z[r][c0 + c][e / 4][e % 4] = sum[r][c][e / 4].total(e % 4);
    }
    if constexpr (!Factors::cuts) {
      bool again = false;
#pragma unroll
      for (int r = 0; r < I::count; ++r)
#pragma unroll
        for (int c = 0; c < J::count; ++c)
#pragma unroll
          for (int e = 0; e < 8; ++e)
            again = again || !(fabsf(z[r][c][e / 4][e % 4]) <= 3.4028235e38f);
      if (again) multiply_plainly<P, a_order, b_order>(z, a, b, rows, columns);
    }
  }
}

// each(i, j, x, y) for a lane's pairs of neighbours, (i, j) and (i, j + 1), rows beyond the last unit
// included.
template <class I, class J, class Each>
__device__ __forceinline__ void each_pair(Square (&z)[I::count][J::count], I rows, J columns,
                                          Each each) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < I::count; ++r)
#pragma unroll
    for (int c = 0; c < J::count; ++c)
      if (columns.has(c))
#pragma unroll
        for (int e = 0; e < 4; ++e)
          each(rows.at(r) + g + e % 2 * 8, columns.at(c) + e / 2 * 8 + 2 * t,
               z[r][c][e / 2][e % 2 * 2], z[r][c][e / 2][e % 2 * 2 + 1]);
}

// ------------------------------------------------------------------------------------ a network

// Whether σ' is kept beside a: of bf16 where it would not be what it is without a's rounding, of
// others where it is computed from z; and of all where a is dropped out: σ' is then, too.
template <class Factors, class Sigma> constexpr bool keeps_slope = Sigma::from_z;
template <class Sigma> constexpr bool keeps_slope<Bf16, Sigma> = true;
template <> constexpr bool keeps_slope<Bf16, Relu> = false;
template <> constexpr bool keeps_slope<Bf16, LeakyRelu> = false;
template <> constexpr bool keeps_slope<Bf16, Identity> = false;

template <class Factors, int ROWS, int N, bool KEEPS> struct Slopes {};
template <class Factors, int ROWS, int N> struct Slopes<Factors, ROWS, N, true> {
  Matrix<Factors, ROWS, padded<N>> slope;
};

// w and b; a, whose place δ takes when a is needed no more (the last layer has δ alone); and, of each
// warp's rows, the sums of δ. What fills up w and b is 0.
template <class Factors, class Form, int FAN_IN, class LAYER, bool HIDDEN>
struct FusedMemory
    : Slopes<Factors, Form::rows, LAYER::n,
             HIDDEN && (Form::drops || keeps_slope<Factors, typename LAYER::Sigma>)> {
  using Layer = LAYER;
  static constexpr int fan_in = FAN_IN, n = LAYER::n;
  static constexpr int inputs = padded<FAN_IN>, outputs = padded<n>;
  static constexpr bool keeps =
      HIDDEN && (Form::drops || keeps_slope<Factors, typename LAYER::Sigma>);

  Matrix<Factors, outputs, inputs> w;
  Matrix<Factors, Form::rows, outputs> a;
  alignas(16) float b[outputs];
  alignas(16) float sums[HIDDEN ? Form::row_warps : Form::warps][outputs];

  using Rows = Units<outputs / 16, LAYER::sharers>;
  using Columns = Units<inputs / 16, Form::warps / LAYER::sharers>;
};

template <class Factors, class Form, int FAN_IN, class... Layers> struct FusedChain;

template <class Factors, class Form, int FAN_IN, class Last>
struct FusedChain<Factors, Form, FAN_IN, Last>
    : FusedMemory<Factors, Form, FAN_IN, Last, false> {
  static constexpr bool last = true;
  static constexpr int behind = 0;  // layers
  static constexpr int outputs_of_all = Last::n;
  static constexpr int all_weights = aligned<Last::n * FAN_IN>, all_biases = aligned<Last::n>;
};

template <class Factors, class Form, int FAN_IN, class First, class... Rest>
struct FusedChain<Factors, Form, FAN_IN, First, Rest...>
    : FusedMemory<Factors, Form, FAN_IN, First, true> {
  using Next = FusedChain<Factors, Form, First::n, Rest...>;
  static constexpr bool last = false;
  static constexpr int behind = Next::behind + 1;
  static constexpr int outputs_of_all = Next::outputs_of_all;
  static constexpr int all_weights = aligned<First::n * FAN_IN> + Next::all_weights;
  static constexpr int all_biases = aligned<First::n> + Next::all_biases;
  Next next;
};

template <class Factors, class Form, int INPUTS, class... Layers> struct FusedShared {
  using Network = FusedChain<Factors, Form, INPUTS, Layers...>;
  Matrix<Factors, Form::rows, padded<INPUTS>> x;
  Network network;
  alignas(16) int sources[2][Form::rows];  // rows of X and Y, of this tile and the next
  alignas(16) double totals[Form::warps];
};

// ∂C/∂w of a layer and all behind it, of a warp's share, where it waits in registers.
template <class Here, bool LAST = Here::last> struct Gradients {
  Square of[Here::Rows::count][Here::Columns::count] = {};
};
template <class Here> struct Gradients<Here, false> {
  Square of[Here::Rows::count][Here::Columns::count] = {};
  Gradients<typename Here::Next> next;
};
