// The factors of a product of float32 matrices on tensor cores, and how what they make is added up.
//
// Bf16 and Tf32 round A and B to what their name says, in registers. Tf32x3 is float32: x is
// big + small, both of TF32, and a product big·big + big·small + small·big, what is left out being
// 2^-22 of it. Tensor cores cut off where they should round, so in Tf32x3 the sum of a slice alone is
// theirs; slices are added, rounded, by the plain cores. small is kept 2^13 times as large, so that it
// has its bits where x has no more than denormals have. A sum that is not finite is made again by
// plain multiply-adds, in order: an infinity has no small, and beyond 2^126 small overflows.
#pragma once

#include "primitives/mma.cuh"

// Three products of TF32 are off by more than twice what plain multiply-adds are, where sums are
// shorter; planning has the same number, as LONG_SUM.
constexpr int long_sum = 64;

// Fragments of a warp's share of A (R = 4 registers) and B (R = 2), as a lane holds them, and what
// they are multiplied to. A fragment is of `steps` steps of the sum; read(s, x) gives the lane's
// numbers of the eight from s on.
struct Bf16 {
  static constexpr int steps = 16;
  static constexpr bool cuts = true;  // its sums are those of the tensor cores

  template <int R> struct Fragment {
    unsigned x[R];

    template <class Read> __device__ void load(Read read) {
      float first[R], second[R];
      read(0, first);
      read(8, second);
#pragma unroll
      for (int r = 0; r < R / 2; ++r) {
        x[r] = round_bf16(first[r], first[r + R / 2]);
        x[r + R / 2] = round_bf16(second[r], second[r + R / 2]);
      }
    }
  };

  struct Sum {
    float of[4] = {};

    __device__ void multiply(const Fragment<4>& a, const Fragment<2>& b) { mma_bf16(of, a.x, b.x); }
    __device__ void end_slice() {}
    __device__ float total(int r) const { return of[r]; }
  };
};

struct Tf32 {
  static constexpr int steps = 8;
  static constexpr bool cuts = true;

  template <int R> struct Fragment {
    unsigned x[R];

    template <class Read> __device__ void load(Read read) {
      float numbers[R];
      read(0, numbers);
#pragma unroll
      for (int r = 0; r < R; ++r) x[r] = round_tf32(numbers[r]);
    }
  };

  struct Sum {
    float of[4] = {};

    __device__ void multiply(const Fragment<4>& a, const Fragment<2>& b) { mma_tf32(of, a.x, b.x); }
    __device__ void end_slice() {}
    __device__ float total(int r) const { return of[r]; }
  };
};

struct Tf32x3 {
  static constexpr int steps = 8;
  static constexpr bool cuts = false;
  static constexpr float larger = 8192;  // 2^13, what makes a denormal's last bit one of TF32's

  template <int R> struct Fragment {
    unsigned big[R], small[R];

    template <class Read> __device__ void load(Read read) {
      float numbers[R];
      read(0, numbers);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        big[r] = round_tf32(numbers[r]);
        small[r] = round_tf32((numbers[r] - __int_as_float(big[r])) * larger);
      }
    }
  };

  struct Sum {
    float before[4] = {}, slice[4] = {}, small[4] = {};

    __device__ void multiply(const Fragment<4>& a, const Fragment<2>& b) {
      mma_tf32(small, a.small, b.big);
      mma_tf32(small, a.big, b.small);
      mma_tf32(slice, a.big, b.big);
    }
    __device__ void end_slice() {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        before[r] += slice[r];
        slice[r] = 0;
      }
    }
    __device__ void add(int r, float a, float b) { before[r] += a * b; }
    __device__ float total(int r) const { return before[r] + small[r] * (1 / larger); }
  };
};
