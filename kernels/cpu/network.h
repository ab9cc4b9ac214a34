// Where a network, and what a step makes of it, lie in a member's memory.
#pragma once
#include "abi.h"
#include "maps.h"
#include "product.h"

namespace {

// A chunk of w is what phase B hands out: so many inputs by so many strips. Its sums stay in a core's
// L1 cache, and what it reads of a and δ is read from memory once.
constexpr int CHUNK = 64, CHUNK_STRIPS = 4;
// Inputs of which w, and rows of which a and δ, stay in a core's L1 cache while tiles read them.
constexpr int INPUTS_AT_ONCE = 256, ROWS_AT_ONCE = 192;
// A warp's: a row's sums, and the cost's, are made in so many lanes and these added as it does.
constexpr int LANES = 32;
// Levels of a tree of shards: of 2^10 of them at most.
constexpr int LEVELS = 11;

INLINE ptrdiff_t units_of(ptrdiff_t count, ptrdiff_t unit) { return (count + unit - 1) / unit; }
INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Rows of each shard of so many, but for the last ones, which may have less or none.
INLINE ptrdiff_t rows_of_shard(const AbiMember& member, ptrdiff_t rows) {
  return units_of(rows, member.shards);
}

// The most rows of a step that are this process's.
INLINE int own_rows(const AbiMember& member) {
  const ptrdiff_t most = (member.end_shard - member.first_shard) * rows_of_shard(member, member.batch);
  return most < member.batch ? int(most) : member.batch;
}

// What a memory is for.
enum Use {
  TRAINING,
  READING,   // blocks of rows: all threads read the same parameters, which lie elsewhere
  PASSING,   // all rows of a pass
  UNPACKED,  // few rows, which take the parameters as they come
};

// Hands out memory at multiples of 64 bytes; where there is none, it counts.
struct Arena {
  char* begin;
  size_t used = 0;
  template <class N> N* take(ptrdiff_t count) {
    N* found = begin ? reinterpret_cast<N*>(begin + used) : nullptr;
    used += size_t(units_of(count * ptrdiff_t(sizeof(N)), 64)) * 64;
    return found;
  }
};

template <class T> struct Layer {
  const AbiLayer* described;
  int inputs, neurons, strips;  // strips of neurons
  int first_chunk;              // the number of its first
  int slice;                    // inputs of a slice of the sums of z
  ptrdiff_t w, b;               // where they begin in p, the states and the gradient
  T* transposed;  // w once more, as BP2 reads it: strips of inputs, a row a neuron; or null
  T *z, *a, *delta;             // (strips, height, W); z is null where nobody needs it
  T* out;                       // what of a the next layer gets: a, unless some is dropped out
  ptrdiff_t next;               // between two runs of W of an input row
  const T **input_rows, **delta_rows;  // (batch), where they begin
};

template <class T> struct Memory {
  int depth, batch, chunks = 0;
  ptrdiff_t height;      // rows of a strip: odd, or all strips would share a few of a cache's sets
  ptrdiff_t length = 0;  // of p
  Layer<T>* layers;  // each thread has them for itself
  T *p, *state[2], *gradient;  // in strips; null where there is none
  T *x, *y;                    // rows in strips; x is null where they are read in place
  T* x_error = nullptr;        // ∂C/∂x, in strips, where it is wanted
  bool clips;                  // whether the gradient's norm is
  bool by_inputs;              // whether threads share out layer 1 by slices of its inputs
  T* parts = nullptr;          // its slices' sums, (slices, strips, height, W)
  T* terms;                    // of the cost, (batch, n_L); a user's has one a row
  double *squares, *norms;     // (chunks), (chunks, 2)
  T* scratch;                  // (threads, scratch_length): three times a block's outputs
  ptrdiff_t scratch_length;
  size_t bytes;

  Memory(Arena arena, const AbiNetwork& network, const AbiMember& member, int threads, int thread,
         Use use = TRAINING, bool inputs_error = false)
      : depth(network.depth), batch(own_rows(member)), height(batch | 1) {
    constexpr int w = W<T>;
    const bool counts = !arena.begin, strips_of_w = use == TRAINING || use == PASSING;
    clips = use == TRAINING && member.clip_norm <= largest<double>();
    // Sums over chunks of w must not depend on who has which inputs.
    by_inputs = member.by_inputs && !clips && !member.squares;
    layers = arena.take<Layer<T>>(ptrdiff_t(threads) * depth);
    if (!counts) layers += ptrdiff_t(thread) * depth;
    for (int l = 0; l < depth; ++l) {
      const AbiLayer& described = network.layers[l];
      const ptrdiff_t strips = units_of(described.neurons, w);
      const ptrdiff_t numbers = strips * w * height;
      Layer<T> here{};
      here.described = &described;
      here.inputs = described.inputs;
      here.neurons = described.neurons;
      here.strips = int(strips);
      here.first_chunk = chunks;
      const ptrdiff_t runs = units_of(described.inputs, RUN<T>);
      here.slice = int(units_of(runs, member.slices ? member.slices[l] : 1) * RUN<T>);
      chunks += int(strips * units_of(described.inputs, CHUNK));
      here.w = length;
      length += strips * w * described.inputs;
      here.b = length;
      length += strips * w;
      if (strips_of_w && (l > 0 || inputs_error))
        here.transposed = arena.take<T>(units_of(described.inputs, w) * w * described.neurons);
      if (described.from_z || l == depth - 1) here.z = arena.take<T>(numbers);
      here.out = here.a = arena.take<T>(numbers);
      if (member.rates && l < depth - 1) here.out = arena.take<T>(numbers);
      here.delta = arena.take<T>(numbers);
      here.next = l > 0 || !member.in_place ? height * w : w;
      const bool own = l == 0 && by_inputs;
      if (own) parts = arena.take<T>(units_of(here.inputs, here.slice) * numbers);
      // Each thread then finds the rows of X for itself.
      here.input_rows = arena.take<const T*>(ptrdiff_t(batch) * (own ? threads : 1));
      if (own && !counts) here.input_rows += ptrdiff_t(batch) * thread;
      here.delta_rows = arena.take<const T*>(batch);
      if (!counts) layers[l] = here;
    }
    const ptrdiff_t inputs = units_of(network.layers[0].inputs, w) * w;
    const ptrdiff_t outputs = units_of(network.layers[depth - 1].neurons, w) * w;
    p = strips_of_w ? arena.take<T>(length) : nullptr;
    for (int i = 0; i < 2; ++i)
      state[i] = use == TRAINING && member.state[i] ? arena.take<T>(length) : nullptr;
    gradient = static_cast<T*>(member.gradient);
    if (clips && !gradient) gradient = arena.take<T>(length);
    if (inputs_error) x_error = arena.take<T>(inputs * height);
    x = member.in_place ? nullptr : arena.take<T>(inputs * height);
    y = arena.take<T>(outputs * height);
    terms = arena.take<T>(outputs * batch);
    squares = arena.take<double>(chunks);
    norms = arena.take<double>(2 * ptrdiff_t(chunks));
    scratch_length = 3 * outputs * ptrdiff_t(member.block);
    scratch = arena.take<T>(threads * scratch_length);
    bytes = arena.used;
  }
};

}  // namespace
