// How the factors of a product lie in memory, for gemm.cuh and tensor_gemm.cuh.
#pragma once

// With the summed index p contiguous, or with the index of the result (i or j) contiguous.
enum class Contiguous { p, result };

// Blocks that a multiprocessor must hold, by their registers; of numbers of so many bytes.
template <class T, class Tile> constexpr int least_blocks = Tile::blocks(sizeof(T));

struct Nothing {
  template <class T> __device__ void operator()(T) const {}
  __device__ Nothing operator()(int, int) const { return {}; }  // what an epilogue needs of memory
};
template <class OfA> constexpr bool is_nothing = false;
template <> constexpr bool is_nothing<Nothing> = true;
