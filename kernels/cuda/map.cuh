// The division of work in elementwise kernels: a thread takes N = 16 / sizeof(T) elements, a block
// of B threads N · B neighbours.
//
// Where every array allows 16-byte accesses to the whole of a block's elements, a thread's are a
// run; otherwise they are B apart. Either way a warp's accesses are neighbours, and all threads of
// a block go one way. Arrays may start at any element. An array of another type moves N elements
// at a time, too.
#pragma once

#include "run.cuh"

template <class T> struct Share {
  static constexpr int N = 16 / sizeof(T);

  size_t count;  // elements of an array
  bool wide;     // whether this thread's are a run
  size_t first;  // of this thread's elements
  int step;      // from each to the next

  // `runs` is false where an array's elements are not read in a row.
  template <class... X>
  __device__ Share(size_t count, bool runs, const X*... arrays)
      : Share(blockIdx.x, count, runs, arrays...) {}

  // Of a map that starts at another block of the grid, `block` is this one's number.
  template <class... X>
  __device__ Share(unsigned block, size_t count, bool runs, const X*... arrays) : count(count) {
    const size_t begin = size_t(block) * blockDim.x * N;
    wide = runs && begin + blockDim.x * N <= count &&
           (... && (reinterpret_cast<size_t>(arrays) % sizeof(Run<X, N>) == 0));
    first = begin + threadIdx.x * (wide ? N : 1);
    step = wide ? 1 : blockDim.x;
  }

  __device__ size_t at(int i) const { return first + size_t(i) * step; }

  // Element at(i) is x[place(at(i))]; what is beyond the end is zero.
  template <class X, class Place> __device__ Run<X, N> get(const X* x, Place place) const {
    Run<X, N> values = {};
    if (wide) return *reinterpret_cast<const Run<X, N>*>(x + place(first));
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (at(i) < count) values.x[i] = x[place(at(i))];
    return values;
  }

  template <class X> __device__ Run<X, N> get(const X* x) const {
    return get(x, [](size_t at) { return at; });
  }

  template <class X> __device__ void put(X* x, const Run<X, N>& values) const {
    if (wide) {
      *reinterpret_cast<Run<X, N>*>(x + first) = values;
      return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (at(i) < count) x[at(i)] = values.x[i];
  }
};
