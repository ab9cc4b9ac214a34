// The two products of a step, in tiles that stay in registers.
//
//   product      out(x, ·) = Σ_k a(x, k) b(k, ·)   forward: b is w^lᵀ; BP2: a is δ^l, b is w^l
//   gradient     g(k, ·)   = Σ_x a(x, k) δ(x, ·)   BP4
//
// A matrix is in strips of W columns (64 bytes), each stored row after row,
//
//   M (r, n)  →  strip s, row x, lane j:  element  (s · r + x) · W + j
//
// and what fills up the last strip is 0. `a` is given by where its rows begin and by how far two
// runs of W numbers of a row are apart, so that it may be in strips or lie in the data as it came.
//
// Tiling. A tile is ROWS × STRIPS rows of a strip, all sums in registers, none of them spilled:
// each step of its loop loads STRIPS rows of b and one number of a for every row, and makes
// ROWS · STRIPS fused multiply-adds. Every sum runs over all of k, or x, in order: a loop that is
// cut keeps its sums in `out` meanwhile, and the bits do not depend on where it is cut. But BP4's may
// be in shards of the rows, each summed from 0, which are added along a binary tree; and z's may be
// in slices, each summed from 0, which are added one after the other: as on a CUDA device, where
// threads take one each.
//
// Roof. 2 fused multiply-adds of a register a cycle, if ROWS · STRIPS of them (of 64 / REGISTER
// registers each) hide their latency of 4 cycles and loads, at most 2 a cycle, keep up.
#pragma once
#include "vector.h"

namespace {

#if REGISTER == 64
constexpr int ROWS = 12, STRIPS = 2, INPUTS = 8;
#elif REGISTER == 32
constexpr int ROWS = 6, STRIPS = 1, INPUTS = 6;
#elif defined(__aarch64__)
constexpr int ROWS = 6, STRIPS = 1, INPUTS = 6;
#else
constexpr int ROWS = 2, STRIPS = 1, INPUTS = 2;
#endif

// Numbers in 16 bytes: the slices of a sum are so many runs of them.
template <class T> constexpr int RUN = 16 / sizeof(T);

template <int N> struct Count {
  static constexpr int value = N;
};

// body(Count<n>), n = 1 … MOST.
template <int MOST, class Body> INLINE void with_count(int n, Body body) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_count<MOST - 1>(n, body);
  }
  body(Count<MOST>());
}

// body(first, Count<n>) for tiles of at most MOST that make up `count`, of sizes as even as can be.
template <int MOST, class Body> INLINE void in_tiles(int count, Body body) {
  int tiles = (count + MOST - 1) / MOST;
  for (int first = 0; first < count; --tiles) {
    const int here = (count - first + tiles - 1) / tiles;
    with_count<MOST>(here, [&](auto n) { body(first, n); });
    first += here;
  }
}

// out(x, ·) for R rows and S strips; k from k_begin, a multiple of RUN, to k_end. Without `fresh` the
// sums begin with what is in out; or, if this is a `slice` of them, they begin with 0 and are added to
// what is in out. `bias`, where it is not null, is added at the end.
template <class T, int R, int S>
__attribute__((noinline)) void product_tile(T* out, ptrdiff_t out_strip, bool fresh,
                                            bool slice, const T* const* rows, ptrdiff_t next, const T* b,
                                            ptrdiff_t b_strip, int k_begin, int k_end,
                                            const T* bias) {
  constexpr int w = W<T>;
  Strip<T> sum[R][S];
  const T* a[R];
#pragma GCC unroll 16
  for (int x = 0; x < R; ++x) a[x] = rows[x];
  if (fresh || slice) {
#pragma GCC unroll 16
    for (int x = 0; x < R; ++x)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[x][s] = Strip<T>::zero();
  } else {
#pragma GCC unroll 16
    for (int x = 0; x < R; ++x)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[x][s] = Strip<T>::load(out + s * out_strip + x * w);
  }
  b += ptrdiff_t(k_begin) * w;
  const auto add = [&](ptrdiff_t at) __attribute__((always_inline)) {
    Strip<T> factor[S];
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) factor[s] = Strip<T>::load(b + s * b_strip);
#pragma GCC unroll 16
    for (int x = 0; x < R; ++x) {
      const Strip<T> value(a[x][at]);
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[x][s].add_product(value, factor[s]);
    }
    b += w;
  };
  ptrdiff_t at = k_begin / w * next + k_begin % w;
  int k = k_begin;
#pragma GCC unroll 1
  while (k_end - k >= RUN<T>) {
    if (k % w == 0) {
#pragma GCC unroll 16
      for (int x = 0; x < R; ++x) __builtin_prefetch(a[x] + at + next);
    }
#pragma GCC unroll 4
    for (int v = 0; v < RUN<T>; ++v) add(at + v);
    k += RUN<T>;
    at += RUN<T> + (k % w == 0 ? next - w : 0);
  }
#pragma GCC unroll 1
  for (; k < k_end; ++k, ++at) add(at);
  if (slice) {
#pragma GCC unroll 16
    for (int x = 0; x < R; ++x)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) {
        const T* const total = out + s * out_strip + x * w;
        sum[x][s] = (fresh ? Strip<T>::zero() : Strip<T>::load(total)) + sum[x][s];
      }
  }
  if (bias) {
#pragma GCC unroll 16
    for (int x = 0; x < R; ++x)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[x][s] += Strip<T>::load(bias + s * w);
  }
#pragma GCC unroll 16
  for (int x = 0; x < R; ++x)
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) sum[x][s].store(out + s * out_strip + x * w);
}

// sum(i, ·) += Σ_x a(x, i) δ(x, ·) for R inputs, `at` being where the first lies in a row.
template <class T, int R, int S>
INLINE void add_rows(Strip<T> (&sum)[R][S], const T* const* rows, ptrdiff_t at, const T* delta,
                     ptrdiff_t delta_strip, int x_begin, int x_end) {
  constexpr int w = W<T>;
  const auto add = [&](int x) __attribute__((always_inline)) {
    const T* a = rows[x] + at;
    Strip<T> factor[S];
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) factor[s] = Strip<T>::load(delta + s * delta_strip + x * w);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Strip<T> value(a[i]);
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[i][s].add_product(value, factor[s]);
    }
  };
  // In pieces of 4, 2 and 1: a short loop's exit is mispredicted in every tile.
  int x = x_begin;
#pragma GCC unroll 1
  for (; x_end - x >= 4; x += 4) {
    add(x);
    add(x + 1);
    add(x + 2);
    add(x + 3);
  }
  const int left = x_end - x;
  if (left & 2) {
    add(x);
    add(x + 1);
    x += 2;
  }
  if (left & 1) add(x);
}

// A tree of `count` shards, a power of two; begin[i] … begin[i + 1] are the rows of one.
struct Shards {
  const int* begin;
  int count;
};
// Shards of which a tile makes the tree: its sums of each level wait in the L1 cache.
constexpr int TILE_LEVELS = 6, TILE_SHARDS = 1 << TILE_LEVELS;

// The sums of a tree of shards, each alone and then in pairs; those of one are added to what is there.
template <class T, int R, int S>
INLINE void add_shards(Strip<T> (&sum)[R][S], const T* const* rows, ptrdiff_t at, const T* delta,
                       ptrdiff_t delta_strip, Shards shards) {
  constexpr int w = W<T>;
  alignas(64) T waiting[TILE_LEVELS][R][S][w];
  int level = 0;
#pragma GCC unroll 1
  for (int i = 0; i < shards.count; ++i) {
    add_rows<T, R, S>(sum, rows, at, delta, delta_strip, shards.begin[i], shards.begin[i + 1]);
    for (level = 0; i >> level & 1; ++level)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s) sum[r][s] += Strip<T>::load(waiting[level][r][s]);
    if (i + 1 == shards.count) break;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) {
        sum[r][s].store(waiting[level][r][s]);
        sum[r][s] = Strip<T>::zero();
      }
  }
}

// g(k, ·) of R inputs and S strips, rows `out_row` apart in `out`, summed over a tree of shards; `at` is
// where the first input lies in a row. Without `fresh` the sums, of one shard, begin with what is there.
// At the end so many others are added, `apart` from each other, which lie behind out: the last first.
template <class T, int R, int S>
__attribute__((noinline)) void gradient_tile(T* out, ptrdiff_t out_row, bool fresh,
                                             const T* const* rows, ptrdiff_t at, const T* delta,
                                             ptrdiff_t delta_strip, Shards shards, int others,
                                             ptrdiff_t apart) {
  constexpr int w = W<T>;
  Strip<T> sum[R][S];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s)
      sum[i][s] = fresh ? Strip<T>::zero() : Strip<T>::load(out + i * out_row + s * w);
  add_shards<T, R, S>(sum, rows, at, delta, delta_strip, shards);
#pragma GCC unroll 1
  for (; others > 0; --others) {
    const T* const other = out + others * apart;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int s = 0; s < S; ++s) sum[i][s] += Strip<T>::load(other + i * out_row + s * w);
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) sum[i][s].store(out + i * out_row + s * w);
}

}  // namespace
