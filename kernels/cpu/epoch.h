// Steps of gradient descent: forward, C, BP1 to BP4 and the rule, as the threads of a team.
//
// A step has two phases, and a wait behind each:
//
//   A  rows     a thread takes blocks of rows through the network and back: forward, C, BP1, BP2
//   B  weights  a thread takes chunks of w: BP3 and BP4 over the whole batch, and the rule at once.
//               (Where the gradient's norm is clipped, all chunks' gradients first, a wait, and then
//               the rule.)
//
// A step may be run in parts: phase A, of phase B the gradient of a layer, and the rule. Between them
// other processes, which have other shards of the mini-batch, add to the gradient.
//
// By inputs, there is one before them, for layer 1 of a small batch: a thread makes the slices of z^1
// that are over its inputs, and in phase B changes w^1 there. So it alone reads those columns of X.
//
// Every sum is made by one thread in one order: so the bits depend on neither threads nor blocks, nor
// on what trains beside; but on how many shards there are. The order is that of the resident CUDA kernel, which as g++ compiles it has
// the same bits; on a card that has not run yet.
#pragma once
#include "network.h"
#include "team.h"

namespace {

template <class T> struct Epoch {
  const AbiNetwork& network;
  const AbiMember& member;
  const Team& team;
  const int thread;
  const Memory<T>& memory;
  const void* const X;
  const T* const Y;
  int m = 0;                       // rows of this step, of this process's shards
  int rows_of_step = 0;            // of all shards
  const int64_t* order = nullptr;  // of them; where there is none, they follow `first_row`
  const T* weights = nullptr;      // of them, in that order; null where all are 1
  int64_t first_row = 0;
  unsigned key[2] = {};  // of dropout, in this epoch
  unsigned step_of_epoch = 0;
  ptrdiff_t x_row = network.layers[0].inputs;  // numbers from a row of X to the next

  static constexpr int w = W<T>;

  // `count` shards from the first on, a power of two.
  struct Tree {
    int first = 0, count = 1;
  };

  // body(number, Tree) for the largest trees that have this process's shards alone.
  template <class Body> INLINE void each_tree(Body body) const {
    int number = 0;
    for (int first = member.first_shard, end = member.end_shard; first < end;) {
      int count = 1;
      while (first % (2 * count) == 0 && first + 2 * count <= end) count *= 2;
      body(number++, Tree{first, count});
      first += count;
    }
  }

  // Where a shard's rows begin, of the step's, and of this process's.
  int first_row_of(int shard) const {
    const ptrdiff_t begin = shard * rows_of_shard(member, rows_of_step);
    return begin < rows_of_step ? int(begin) : rows_of_step;
  }
  int begin_of(int shard) const { return first_row_of(shard) - first_row_of(member.first_shard); }

  Layer<T>& last() const { return memory.layers[memory.depth - 1]; }
  T* scratch() const { return memory.scratch + thread * memory.scratch_length; }
  ptrdiff_t strip() const { return memory.height * w; }  // from one to the next

  // ------------------------------------------------------------------------- into strips and back

  // move(where a number lies in the flat array, where in strips) for every parameter.
  template <class Move> void each_parameter(Move move) const {
    for (int l = 0; l < memory.depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      for (ptrdiff_t first = 0; first < here.neurons; first += w) {
        const int columns = smaller(w, int(here.neurons - first));
        for (ptrdiff_t k = 0; k < here.inputs; ++k)
          for (ptrdiff_t j = 0; j < columns; ++j)
            move(here.described->w_at + (first + j) * here.inputs + k,
                 here.w + first * here.inputs + k * w + j);
      }
      for (ptrdiff_t j = 0; j < here.neurons; ++j) move(here.described->b_at + j, here.b + j);
    }
  }

  void begin() const {
    const void* const flat[] = {member.p, member.state[0], member.state[1]};
    T* const strips[] = {memory.p, memory.state[0], memory.state[1]};
    for (int l = 0; l < memory.depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      for (int i = 0; i < 3; ++i) {
        if (!strips[i]) continue;
        const T* const from = static_cast<const T*>(flat[i]);
        into_strips(here, from + here.described->w_at, from + here.described->b_at, strips[i]);
      }
      if (l > 0) transpose_all(here, static_cast<const T*>(member.p) + here.described->w_at);
    }
    if (thread == 0) connect();
  }

  // What of a layer is this thread's, where inputs are shared out: from, to, multiples of W.
  int share_of_inputs(const Layer<T>& here, int of_thread) const {
    return smaller(here.inputs, int(units_of(here.inputs, w) * of_thread / team.threads) * w);
  }

  // w and b of a layer into strips: this thread's inputs. w is (neurons, inputs), or the other way.
  void into_strips(const Layer<T>& here, const T* flat, const T* biases, T* strips,
                   bool inputs_first = false) const {
    const int begin = share_of_inputs(here, thread), end = share_of_inputs(here, thread + 1);
    for (int s = 0; s < here.strips; ++s) {
      const int columns = smaller(w, here.neurons - s * w);
      const T* const from = flat + ptrdiff_t(s) * w * (inputs_first ? 1 : here.inputs);
      T* const to = strips + here.w + ptrdiff_t(s) * here.inputs * w;
      for (ptrdiff_t k = begin; inputs_first && k < end; ++k)
        copy_part(from + k * here.neurons, columns, to + k * w);
      if (inputs_first) continue;
      ::copy_transposed(from + begin, here.inputs, columns, end - begin, to + ptrdiff_t(begin) * w, w);
      for (ptrdiff_t k = begin; columns < w && k < end; ++k)
        for (int j = columns; j < w; ++j) to[k * w + j] = T(0);
    }
    for (int j = 0; thread == 0 && j < here.strips * w; ++j)
      strips[here.b + j] = j < here.neurons ? biases[j] : T(0);
  }

  // w of a layer into the copy that BP2 reads: this thread's inputs.
  void transpose_all(const Layer<T>& here, const T* flat, bool inputs_first = false) const {
    const int begin = share_of_inputs(here, thread), end = share_of_inputs(here, thread + 1);
    for (int k = begin; k < end; k += w) {
      T* const to = here.transposed + ptrdiff_t(k) * here.neurons;
      const int rows = smaller(w, end - k);
      for (ptrdiff_t j = 0; !inputs_first && j < here.neurons; ++j)
        copy_part(flat + j * here.inputs + k, rows, to + j * w);
      if (!inputs_first) continue;
      ::copy_transposed(flat + ptrdiff_t(k) * here.neurons, here.neurons, rows, here.neurons, to, w);
      for (ptrdiff_t j = 0; rows < w && j < here.neurons; ++j)
        for (int i = rows; i < w; ++i) to[j * w + i] = T(0);
    }
  }

  // W numbers, of which there are `count`, and zeros behind them.
  INLINE static void copy_part(const T* from, int count, T* to) {
    if (count == w) return copy_run(from, to);
    for (int i = 0; i < w; ++i) to[i] = i < count ? from[i] : T(0);
  }

  // Where each row of a layer's inputs and of its δ lies, but for rows of X that are read in place.
  void connect() const {
    for (int l = 0; l < memory.depth; ++l) {
      Layer<T>& here = memory.layers[l];
      for (int x = 0; x < memory.batch; ++x) {
        here.delta_rows[x] = here.delta + ptrdiff_t(x) * w;
        if (l > 0) here.input_rows[x] = memory.layers[l - 1].out + ptrdiff_t(x) * w;
        else if (memory.x) here.input_rows[x] = memory.x + ptrdiff_t(x) * w;
      }
    }
  }

  void end() const {
    void* const flat[] = {member.p, member.state[0], member.state[1]};
    const T* const strips[] = {memory.p, memory.state[0], memory.state[1]};
    for (int i = 0; i < 3; ++i) {
      T* const to = static_cast<T*>(flat[i]);
      if (strips[i])
        each_parameter([&](ptrdiff_t at, ptrdiff_t in) { to[at] = strips[i][in]; });
    }
  }

  // A strip of w, inputs k_begin … k_end, into the copy that BP2 reads; k_begin is a multiple of W.
  void transpose(const Layer<T>& here, int s, int k_begin, int k_end) const {
    const T* const from = memory.p + here.w + ptrdiff_t(s) * here.inputs * w;
    const int columns = smaller(w, here.neurons - s * w);
    for (ptrdiff_t k = k_begin; k < k_end; k += w) {
      T* const to = here.transposed + (k * here.neurons + ptrdiff_t(s) * w * w);
      const int rows = smaller(w, int(k_end - k));
      ::copy_transposed(from + k * w, w, rows, columns, to, w);
      for (ptrdiff_t j = 0; rows < w && j < columns; ++j)
        for (int i = rows; i < w; ++i) to[j * w + i] = T(0);
    }
  }

  // --------------------------------------------------------------------------------- phase A: rows

  int64_t row(int x) const { return order ? order[x] : first_row + x; }

  // Rows of n numbers into strips; each row whole, as the processor's own prefetching likes it.
  template <class N>
  void gather(const N* from, ptrdiff_t from_row, int n, int x_begin, int x_end, T* strips) const {
    for (int x = x_begin; x < x_end; ++x) {
      const N* const of_row = from + row(x) * from_row;
      T* to = strips + ptrdiff_t(x) * w;
      int j = 0;
      for (; j + w <= n; j += w, to += strip()) copy_run(of_row + j, to);
      for (int i = 0; j < n && i < w; ++i) to[i] = i < n - j ? T(of_row[j + i]) : T(0);
    }
  }

  INLINE static void copy_run(const T* from, T* to) { Strip<T>::load_anywhere(from).store(to); }
  INLINE static void copy_run(const uint8_t* __restrict from, T* __restrict to) {
    for (int i = 0; i < w; ++i) to[i] = T(from[i]);
  }

  void gather(int x_begin, int x_end) const {
    const int inputs = memory.layers[0].inputs;
    if (Y) gather(Y, last().neurons, last().neurons, x_begin, x_end, memory.y);
    if (memory.x && network.stored == 1)
      gather(static_cast<const uint8_t*>(X), x_row, inputs, x_begin, x_end, memory.x);
    else if (memory.x)
      gather(static_cast<const T*>(X), x_row, inputs, x_begin, x_end, memory.x);
    if (!memory.x && !memory.by_inputs) find_rows(x_begin, x_end);
  }

  // Where rows of X lie that are read in place.
  void find_rows(int x_begin, int x_end) const {
    const Layer<T>& first = memory.layers[0];
    for (int x = x_begin; !sparse() && x < x_end; ++x)
      first.input_rows[x] = static_cast<const T*>(X) + row(x) * x_row;
  }

  // X, where it is sparse.
  const AbiSparse* sparse() const {
    return network.stored ? nullptr : static_cast<const AbiSparse*>(X);
  }

  // Σ_k a(x, k) b(k, ·) over what a row of a sparse X has, in the slices and the order of `product`.
  template <int S>
  INLINE void sparse_row(T* out, const AbiSparse& from, int64_t x, const T* b, ptrdiff_t b_strip,
                         int slice, const T* bias) const {
    const T* const values = static_cast<const T*>(from.values);
    Strip<T> total[S], sum[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) total[s] = sum[s] = Strip<T>::zero();
    int cut = slice;
    for (int64_t i = from.starts[x]; i < from.starts[x + 1]; ++i) {
      const int k = from.columns[i];
      if (k >= cut) {
        cut = (k / slice + 1) * slice;
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) total[s] += sum[s], sum[s] = Strip<T>::zero();
      }
      const Strip<T> value(values[i]);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s)
        sum[s].add_product(value, Strip<T>::load(b + s * b_strip + ptrdiff_t(k) * w));
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s)
      (total[s] + sum[s] + Strip<T>::load(bias + s * w)).store(out + s * strip());
  }

  void sparse_product(T* z, int x_begin, int x_end) const {
    const Layer<T>& first = memory.layers[0];
    const ptrdiff_t b_strip = ptrdiff_t(first.inputs) * w;
    for (int s = 0; s < first.strips; s += 4)
      for (int x = x_begin; x < x_end; ++x)
        with_count<4>(smaller(4, first.strips - s), [&](auto n) {
          sparse_row<n.value>(z + s * strip() + ptrdiff_t(x - x_begin) * w, *sparse(), row(x),
                              memory.p + first.w + s * b_strip, b_strip, first.slice,
                              memory.p + first.b + s * w);
        });
  }

  // out = Σ_k a(x, k) b(k, ·) + bias for a block's rows and so many strips, the sum in slices of so
  // many inputs. One that is not cut is carried on: what its tiles read stays in the L1 cache.
  void product(T* out, ptrdiff_t out_strip, const T* const* rows, ptrdiff_t next, const T* b,
               ptrdiff_t b_strip, int inputs, int slice, int count, int strips,
               const T* bias) const {
    const bool cut = slice < inputs;
    const int at_once = cut ? slice : INPUTS_AT_ONCE;
    for (int k = 0; k < inputs; k += at_once) {
      const int end = smaller(k + at_once, inputs);
      add_product(out, out_strip, k == 0, cut, rows, next, b, b_strip, k, end, count, strips,
                  end == inputs ? bias : nullptr);
    }
  }

  // Inputs k to `end` of it.
  void add_product(T* out, ptrdiff_t out_strip, bool fresh, bool slice, const T* const* rows,
                   ptrdiff_t next, const T* b, ptrdiff_t b_strip, int k, int end, int count,
                   int strips, const T* bias) const {
    for (int s = 0; s < strips; s += STRIPS)
      in_tiles<ROWS>(count, [&](int x, auto r) {
        with_count<STRIPS>(smaller(STRIPS, strips - s), [&](auto n) {
          product_tile<T, r.value, n.value>(out + s * out_strip + ptrdiff_t(x) * w, out_strip, fresh,
                                            slice, rows + x, next, b + s * b_strip, b_strip, k, end,
                                            bias ? bias + s * w : nullptr);
        });
      });
  }

  void forward(int l, int x_begin, int x_end) const {
    const Layer<T>& here = memory.layers[l];
    const int count = x_end - x_begin;
    const ptrdiff_t at = ptrdiff_t(x_begin) * w;
    T* const z = (here.z ? here.z : here.a) + at;
    if (l == 0 && sparse())
      sparse_product(z, x_begin, x_end);
    else if (l == 0 && memory.by_inputs)
      add_slices(here, at, z, count);
    else
      product(z, strip(), here.input_rows + x_begin, here.next, memory.p + here.w,
              ptrdiff_t(here.inputs) * w, here.inputs, here.slice, count, here.strips,
              memory.p + here.b);
    if (l == memory.depth - 1) return;
    for (int s = 0; s < here.strips; ++s)
      activate(here, z + s * strip(), here.a + at + s * strip(), ptrdiff_t(count) * w);
    if (member.rates) drop_out(l, here.a, here.out, x_begin, x_end);
  }

  // out = source ⊙ r of layer l + 1: 0, or 1 / (1 - rate).
  void drop_out(int l, const T* source, T* out, int x_begin, int x_end) const {
    const double rate = member.rates[l], kept = rate * 4294967296.0 + 0.5;
    const unsigned threshold = kept < 4294967295.0 ? unsigned(kept) : 4294967295u;
    const T scale = T(4294967296.0 / (4294967296.0 - threshold));
    const unsigned first = unsigned(first_row_of(member.first_shard));
    for (int s = 0; s < memory.layers[l].strips; ++s)
      for (int x = x_begin; x < x_end; ++x) {
        const ptrdiff_t at = s * strip() + ptrdiff_t(x) * w;
        for (int j = 0; j < w; j += 4) {
          const Philox bits(first + unsigned(x), unsigned(s * w + j) / 4, unsigned(l + 1), step_of_epoch,
                            key[0], key[1]);
          for (int i = 0; i < 4; ++i)
            out[at + j + i] = bits.word[i] >= threshold ? source[at + j + i] * scale : T(0);
        }
      }
  }

  // z^1 = Σ of its slices + b^1.
  void add_slices(const Layer<T>& here, ptrdiff_t at, T* z, int count) const {
    const ptrdiff_t slice = here.strips * strip(), parts = units_of(here.inputs, here.slice);
    for (int s = 0; s < here.strips; ++s) {
      const Strip<T> bias = Strip<T>::load(memory.p + here.b + s * w);
      const T* const first = memory.parts + at + s * strip();
      for (ptrdiff_t i = 0; i < ptrdiff_t(count) * w; i += w) {
        Strip<T> sum = Strip<T>::load(first + i);
        for (ptrdiff_t part = 1; part < parts; ++part) sum += Strip<T>::load(first + part * slice + i);
        sum += bias;
        sum.store(z + s * strip() + i);
      }
    }
  }

  void activate(const Layer<T>& here, const T* z, T* a, ptrdiff_t count) const {
    const int sigma = here.described->sigma;
    if (sigma >= 0) SIGMAS<T>[sigma].value(z, a, count);
    else here.described->value(z, a, count);
  }

  // δ ← δ ⊙ σ'(saved); a user's σ' goes by way of `space`, as large.
  void pull_back(const Layer<T>& here, const T* saved, T* delta, T* space, ptrdiff_t count) const {
    const int sigma = here.described->sigma;
    if (sigma >= 0) return SIGMAS<T>[sigma].pull_back(saved, delta, count);
    here.described->derivative(saved, space, count);
    for (ptrdiff_t i = 0; i < count; ++i) delta[i] *= space[i];
  }

  // BP2: δ of layer l - 1 from that of l.
  void hidden_error(int l, int x_begin, int x_end) const {
    const Layer<T>& here = memory.layers[l];
    const Layer<T>& below = memory.layers[l - 1];
    const int count = x_end - x_begin;
    const ptrdiff_t at = ptrdiff_t(x_begin) * w;
    product(below.delta + at, strip(), here.delta_rows + x_begin, strip(), here.transposed,
            ptrdiff_t(here.neurons) * w, here.neurons, here.neurons, count, below.strips, nullptr);
    for (int s = 0; s < below.strips; ++s) {
      const ptrdiff_t first = at + s * strip();
      pull_back(below, (below.described->from_z ? below.z : below.a) + first, below.delta + first,
                scratch(), ptrdiff_t(count) * w);
    }
    if (member.rates) drop_out(l - 1, below.delta, below.delta, x_begin, x_end);
  }

  // C and BP1, from z of the last layer.
  void output_error(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const ptrdiff_t count = ptrdiff_t(x_end - x_begin) * w, at = ptrdiff_t(x_begin) * w;
    activate_outputs(x_begin, x_end);
    if (network.cost < 0) return users_error(x_begin, x_end);
    const GivenConstants constants{network.constants, int(network.count)};
    with_cost(network.cost, constants, [&](auto cost) {
      using Cost = decltype(cost);
      const bool by_row = Cost::by_row || here.described->sigma == SOFTMAX;
      if constexpr (Cost::pairs) {
        slopes(x_begin, x_end);
        for (int x = x_begin; x < x_end; ++x) pairs_error(cost, x);
      } else if (by_row) {
        if (here.described->sigma != SOFTMAX) slopes(x_begin, x_end);
        for (int x = x_begin; x < x_end; ++x) row_error(cost, x);
      } else if constexpr (!Cost::by_row) {
        for (int s = 0; s < here.strips; ++s) elementwise_error(cost, at + s * strip(), count);
      }
    });
    fill(x_begin, x_end);
  }

  void activate_outputs(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const bool couples = here.described->sigma == SOFTMAX;
    for (int x = x_begin; couples && x < x_end; ++x) softmax(x);
    for (int s = 0; !couples && s < here.strips; ++s) {
      const ptrdiff_t first = ptrdiff_t(x_begin) * w + s * strip();
      activate(here, here.z + first, here.a + first, ptrdiff_t(x_end - x_begin) * w);
    }
  }

  // What fills up the last strip of δ is 0.
  void fill(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const int s = here.strips - 1, columns = here.neurons - s * w;
    for (int x = x_begin; x < x_end; ++x)
      for (int j = columns; j < w; ++j) here.delta[s * strip() + ptrdiff_t(x) * w + j] = T(0);
  }

  // σ' into δ.
  void slopes(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const ptrdiff_t count = ptrdiff_t(x_end - x_begin) * w;
    for (int s = 0; s < here.strips; ++s) {
      const ptrdiff_t first = ptrdiff_t(x_begin) * w + s * strip();
      for (ptrdiff_t i = 0; i < count; ++i) here.delta[first + i] = T(1);
      pull_back(here, (here.described->from_z ? here.z : here.a) + first, here.delta + first, scratch(),
                count);
    }
  }

  // The terms and δ of a row whose outputs j and j + n/2 belong together; δ holds σ'.
  template <class Cost> void pairs_error(const Cost& cost, int x) const {
    Layer<T>& here = last();
    const int half = here.neurons / 2;
    T* const terms = memory.terms + ptrdiff_t(x) * here.neurons;
    for (int j = 0; j < half; ++j) {
      const ptrdiff_t first = place(x, j), second = place(x, j + half);
      const auto found = pair_of(cost, here.a[first], here.a[second], memory.y[first],
                                 here.delta[first], here.delta[second]);
      terms[j] = found.term;
      terms[j + half] = T(0);
      here.delta[first] = found.of_first;
      here.delta[second] = found.of_second;
    }
  }

  template <class Cost>
  void elementwise_error(const Cost& cost, ptrdiff_t at, ptrdiff_t count) const {
    Layer<T>& here = last();
    T *const z = here.z + at, *const a = here.a + at, *const delta = here.delta + at;
    T* const y = memory.y + at;
    T *const kept = scratch(), *const space = kept + count;
    const int first = int(at / strip()) * w, columns = smaller(w, here.neurons - first);
    if constexpr (!Cost::row_of_softmax) {
      if (network.collapses && network.from_z) terms_from_z(cost, z, a, y, kept, count);
    }
    if (!(network.collapses && network.from_z))
      terms(cost, a, y, kept, T(network.low), T(network.high), first, count);
    const ptrdiff_t x = at % strip() / w;
    for (ptrdiff_t i = 0; i < count / w; ++i)
      for (int j = 0; j < columns; ++j)
        memory.terms[(x + i) * here.neurons + first + j] = kept[i * w + j];
    if (network.collapses) return difference(a, y, delta, count);
    inside(cost, a, kept, count);
    for (ptrdiff_t i = 0; i < count; ++i) delta[i] = T(1);
    pull_back(here, here.described->from_z ? z : kept, delta, space, count);
    error(cost, kept, y, delta, first, count);
  }

  // The sum over LANES lanes, as a warp makes it.
  template <class N> static N sum_of_lanes(N (&lane)[LANES]) {
    for (int distance = LANES / 2; distance > 0; distance /= 2)
      for (int i = 0; i < distance; ++i) lane[i] += lane[i + distance];
    return lane[0];
  }

  // Where output j of row x lies.
  ptrdiff_t place(ptrdiff_t x, int j) const { return j / w * strip() + x * w + j % w; }

  // a_j = e^(z_j - max z) / Σ_k e^(z_k - max z) of a row.
  void softmax(int x) const {
    Layer<T>& here = last();
    T* const z = scratch();
    T largest = here.z[place(x, 0)], lane[LANES] = {};
    for (int j = 0; j < here.neurons; ++j) {
      z[j] = here.z[place(x, j)];
      largest = z[j] > largest ? z[j] : largest;
    }
    for (int j = 0; j < here.neurons; ++j) z[j] = exp(z[j] - largest);
    for (int j = 0; j < here.neurons; ++j) lane[j % LANES] += z[j];
    const T total = sum_of_lanes(lane);
    for (int j = 0; j < here.neurons; ++j) here.a[place(x, j)] = z[j] / total;
  }

  // The terms and δ of a row of softmax, or of a cost by rows, where δ holds σ'.
  template <class Cost> void row_error(const Cost& cost, int x) const {
    Layer<T>& here = last();
    const int n = here.neurons;
    const auto a = [&](int j) { return here.a[place(x, j)]; };
    const auto y = [&](int j) { return memory.y[place(x, j)]; };
    T* const terms = memory.terms + ptrdiff_t(x) * n;
    bool from_z = false;
    if constexpr (Cost::row_of_softmax) {
      from_z = network.collapses && network.from_z;
      T z_max = here.z[place(x, 0)], a_max = a(0);
      for (int j = 1; j < n; ++j) {
        const T z = here.z[place(x, j)];
        z_max = z > z_max ? z : z_max;
        a_max = a(j) > a_max ? a(j) : a_max;
      }
      for (int j = 0; from_z && j < n; ++j)
        terms[j] = term_of_softmax(cost, here.z[place(x, j)], y(j), z_max, a_max);
    }
    if (network.collapses) {
      for (int j = 0; !from_z && j < n; ++j)
        terms[j] = OutputRow<T, Cost>{cost}.term(kept_within_limits(a(j)), y(j), j);
      for (int j = 0; j < n; ++j) here.delta[place(x, j)] = difference_of(a(j), y(j));
      return;
    }
    OutputRow<T, Cost> outputs{cost}, of_lane[LANES];
    for (auto& each : of_lane) each.cost = cost;
    for (int j = 0; j < n; ++j) of_lane[j % LANES].add(a(j), y(j), j);
    for (size_t i = 0; i < sizeof(outputs.sums) / sizeof(T); ++i) {
      T lane[LANES];
      for (int j = 0; j < LANES; ++j) lane[j] = of_lane[j].sums[i];
      outputs.sums[i] = sum_of_lanes(lane);
    }
    outputs.finish();
    const bool softmax = here.described->sigma == SOFTMAX;
    for (int j = 0; j < n; ++j) {
      T& delta = here.delta[place(x, j)];
      terms[j] = outputs.term(kept_within_limits(a(j)), y(j), j);
      delta = outputs.error(a(j), y(j), softmax ? a(j) : delta, j);
    }
  }

  T kept_within_limits(T a) const {
    a = a < T(network.low) ? T(network.low) : a;
    return a > T(network.high) ? T(network.high) : a;
  }

  // A user's C. It looks at rows of a and y that lie one after the other.
  void users_error(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const int n = here.neurons, count = x_end - x_begin;
    const ptrdiff_t numbers = ptrdiff_t(count) * n;
    T *const a = scratch(), *const y = a + numbers, *const out = y + numbers;
    for (int x = 0; x < count; ++x)
      for (int j = 0; j < n; ++j) {
        a[ptrdiff_t(x) * n + j] = here.a[place(x_begin + x, j)];
        y[ptrdiff_t(x) * n + j] = memory.y[place(x_begin + x, j)];
      }
    network.samples(a, y, memory.terms + x_begin, count, n);
    network.gradient(a, y, out, count, n);
    error_from(out, x_begin, x_end);
  }

  // BP1, from ∂C/∂a of rows that lie one after the other.
  void error_from(const T* slopes, int x_begin, int x_end) const {
    Layer<T>& here = last();
    const int n = here.neurons, count = x_end - x_begin;
    const bool couples = here.described->sigma == SOFTMAX;
    for (int x = 0; x < count; ++x) {
      const T* const slope = slopes + ptrdiff_t(x) * n;
      const auto a = [&](int j) { return here.a[place(x_begin + x, j)]; };
      T lane[LANES] = {};
      for (int j = 0; couples && j < n; ++j) lane[j % LANES] += slope[j] * a(j);
      const T mean = sum_of_lanes(lane);
      for (int j = 0; j < n; ++j)
        here.delta[place(x_begin + x, j)] = couples ? a(j) * (slope[j] - mean) : slope[j];
    }
    fill(x_begin, x_end);
    if (couples) return;
    const ptrdiff_t length = ptrdiff_t(count) * w, at = ptrdiff_t(x_begin) * w;
    for (int s = 0; s < here.strips; ++s) {
      const ptrdiff_t first = at + s * strip();
      pull_back(here, (here.described->from_z ? here.z : here.a) + first, here.delta + first,
                scratch(), length);
    }
    fill(x_begin, x_end);  // 0 times an infinite slope is no 0
  }

  // Rows count by their weights, in C and in δ^L.
  void weigh(int x_begin, int x_end) const {
    Layer<T>& here = last();
    const int terms = network.cost < 0 ? 1 : here.neurons;
    for (int x = x_begin; weights && x < x_end; ++x) {
      const T weight = weights[x];
      for (int j = 0; j < terms; ++j) memory.terms[ptrdiff_t(x) * terms + j] *= weight;
      for (int j = 0; j < here.neurons; ++j) here.delta[place(x, j)] *= weight;
    }
  }

  // Σ C_x of some rows, by one thread.
  double sum_of_costs(int x_begin, int x_end) const {
    const ptrdiff_t terms = network.cost < 0 ? 1 : last().neurons, count = x_end * terms;
    double lane[LANES] = {};
    ptrdiff_t e = x_begin * terms;
    for (; e + LANES <= count; e += LANES)
      for (int i = 0; i < LANES; ++i) lane[i] += double(memory.terms[e + i]);
    for (int i = 0; e < count; ++i, ++e) lane[i] += double(memory.terms[e]);
    return sum_of_lanes(lane);
  }

  // What C of the step is the sum of: a number for each of this process's shards.
  void costs_of_step(double* costs) const {
    for (int i = member.first_shard; i < member.end_shard; ++i)
      costs[i] = sum_of_costs(begin_of(i), begin_of(i + 1)) / rows_of_step;
  }

  // The first of this thread's slices of z^1, or of the thread behind it.
  int first_slice(int of_thread) const {
    const Layer<T>& first = memory.layers[0];
    return int(units_of(first.inputs, first.slice) * of_thread / team.threads);
  }

  void inputs_phase() const {
    const Layer<T>& first = memory.layers[0];
    find_rows(0, m);
    for (int i = first_slice(thread); i < first_slice(thread + 1); ++i)
      add_product(memory.parts + i * first.strips * strip(), strip(), true, true, first.input_rows,
                  first.next, memory.p + first.w, ptrdiff_t(first.inputs) * w, i * first.slice,
                  smaller((i + 1) * first.slice, first.inputs), m, first.strips, nullptr);
  }

  void rows_phase() const {
    const int blocks = int(units_of(m, member.block));
    for (int number = thread; number < blocks; number += team.threads) {
      const int x = int(ptrdiff_t(m) * number / blocks), end = int(ptrdiff_t(m) * (number + 1) / blocks);
      gather(x, end);
      for (int l = 0; l < memory.depth; ++l) forward(l, x, end);
      output_error(x, end);
      weigh(x, end);
      for (int l = memory.depth - 1; l > 0; --l) hidden_error(l, x, end);
    }
  }

  // ------------------------------------------------------------------------------ phase B: weights

  // What a step's gradient does to numbers of p and of the states.
  struct Change {
    T share;       // of a row of the mini-batch in the gradient
    bool adjusts;  // by a penalty, or a limit of each component
    T clip_value, l1, l2, c[4], d1, d2, epsilon;

    Change(const AbiMember& member, const double* coefficients, int rows)
        : share(T(1) / T(rows)), clip_value(T(member.clip_value)), l1(T(member.l1)),
          l2(T(coefficients[4])), d1(T(member.d1)), d2(T(member.d2)),
          epsilon(T(member.epsilon)) {
      adjusts = clip_value <= largest<T>() || l1 != T(0) || l2 != T(0);
      for (int i = 0; i < 4; ++i) c[i] = T(coefficients[i]);
    }
  };

  // The rule, for a row of a strip.
  template <class Rule>
  INLINE void change_row(ptrdiff_t at, Strip<T> g, const Strip<T> (&c)[4], const Change& change,
                         bool weight) const {
    T* const p = memory.p + at;
    Strip<T> v = Strip<T>::zero(), u = v;
    if constexpr (Rule::slots > 0) v = Strip<T>::load(memory.state[0] + at);
    if constexpr (Rule::slots > 1) u = Strip<T>::load(memory.state[1] + at);
    const Strip<T> d1(change.d1), d2(change.d2), epsilon(change.epsilon);
    Rule::apply(Strip<T>::load(p), g, v, u, c, d1, d2, epsilon, weight).store(p);
    if constexpr (Rule::slots > 0) v.store(memory.state[0] + at);
    if constexpr (Rule::slots > 1) u.store(memory.state[1] + at);
  }

  // The rule, for `rows` rows of a strip that begin at `at`; g has them `g_row` apart.
  template <class Rule>
  __attribute__((noinline)) void apply(const Change& change, ptrdiff_t at, const T* g,
                                       ptrdiff_t g_row, T scale, int rows, bool weight) const {
    Strip<T> c[4];
    for (int i = 0; i < 4; ++i) c[i] = Strip<T>(change.c[i]);
    for (int i = 0; i < rows; ++i, at += w, g += g_row) {
      Strip<T> step = Strip<T>::load(g) * Strip<T>(scale);
      if (change.adjusts) {
        alignas(64) T numbers[w];
        step.store(numbers);
        for (int j = 0; j < w; ++j) {
          numbers[j] = clip_by_value(numbers[j], change.clip_value);
          if (weight) numbers[j] = penalized(numbers[j], memory.p[at + j], change.l1, change.l2);
        }
        step = Strip<T>::load(numbers);
      }
      change_row<Rule>(at, step, c, change, weight);
    }
  }

  void apply(const Change& change, ptrdiff_t at, const T* g, ptrdiff_t g_row, T scale, int rows,
             bool weight) const {
    with_rule(member.rule, [&](auto rule) {
      apply<decltype(rule)>(change, at, g, g_row, scale, rows, weight);
    });
  }

  // body(layer's number, strip, strips, inputs from, to) for the chunks that are this thread's, of all
  // layers.
  template <class Body> INLINE void each_chunk(Body body) const {
    each_chunk_of(0, memory.depth, body);
  }

  // Of layers l … end_layer - 1.
  template <class Body> INLINE void each_chunk_of(int l, int end_layer, Body body) const {
    int number = 0;
    for (; l < end_layer; ++l) {
      const Layer<T>& here = memory.layers[l];
      const bool own = l == 0 && memory.by_inputs;
      const int end = own ? first_input(thread + 1) : here.inputs;
      for (int k = own ? first_input(thread) : 0; k < end; k += CHUNK)
        for (int s = 0; s < here.strips; s += CHUNK_STRIPS)
          if (own || number++ % team.threads == thread)
            body(l, s, smaller(CHUNK_STRIPS, here.strips - s), k, smaller(k + CHUNK, end));
    }
  }

  // Where this thread's slices begin, or those of the thread behind it: in whole runs of W.
  int first_input(int of_thread) const {
    const Layer<T>& first = memory.layers[0];
    return of_thread == team.threads ? first.inputs : first_slice(of_thread) * first.slice / w * w;
  }

  int chunk_number(const Layer<T>& here, int s, int k) const {
    return here.first_chunk + s * int(units_of(here.inputs, CHUNK)) + k / CHUNK;
  }

  // BP4 of some strips and inputs k_begin … k_end: Σ_x δ a, a row an input, strips · W numbers. So
  // many for each level of the tree is what `sums` has room for.
  void sums_of_chunk(const Layer<T>& here, int s_begin, int strips, int k_begin, int k_end, Tree tree,
                     T* sums) const {
    const ptrdiff_t numbers = ptrdiff_t(k_end - k_begin) * strips * w;
    each_part(tree, [&](Shards shards, int level, int others) {
      const int x_begin = shards.begin[0], x_end = shards.begin[shards.count];
      T* const out = sums + level * numbers;
      if (&here == memory.layers && sparse()) {
        sparse_sums(here.delta + s_begin * strip(), strips, k_begin, k_end, x_begin, x_end, out);
        for (; others > 0; --others)
          for (ptrdiff_t i = 0; i < numbers; ++i) out[i] += out[others * numbers + i];
        return;
      }
      if (shards.count > 1)
        return sums_of_rows(here, s_begin, strips, k_begin, k_end, shards, true, others, numbers, out);
      int piece[] = {x_begin, x_begin};
      do {
        piece[0] = piece[1];
        piece[1] = smaller(piece[0] + ROWS_AT_ONCE, x_end);
        sums_of_rows(here, s_begin, strips, k_begin, k_end, {piece, 1}, piece[0] == x_begin,
                     piece[1] == x_end ? others : 0, numbers, out);
      } while (piece[1] < x_end);
    });
  }

  // body(shards, level, others) for parts of a tree: a shard, or as many as fit in a core's L1 cache
  // together, if X is not sparse. The sums of each, with those of so many `others`, which lie at the
  // levels behind, the last one first, are to lie at `level`: what is at level 0 at last is the tree's.
  template <class Body> INLINE void each_part(Tree tree, Body body) const {
    const ptrdiff_t rows = rows_of_shard(member, rows_of_step);
    int each = 1, levels = 0;
    while (!sparse() && 2 * each <= smaller(tree.count, TILE_SHARDS) && each * rows <= ROWS_AT_ONCE / 2)
      each *= 2;
    const int parts = tree.count / each;
    while (1 << levels < parts) ++levels;
    int begin[TILE_SHARDS + 1];
    for (int i = 0; i < parts; ++i) {
      int others = 0;  // each has as many parts as this one and the others before it
      while (i >> others & 1) ++others;
      for (int j = 0; j <= each; ++j) begin[j] = begin_of(tree.first + i * each + j);
      body(Shards{begin, each}, levels - others, others);
    }
  }

  // Of a tree of shards, perhaps begun, and added to others, as in `gradient_tile`.
  INLINE void sums_of_rows(const Layer<T>& here, int s_begin, int strips, int k_begin, int k_end,
                           Shards shards, bool fresh, int others, ptrdiff_t apart, T* sums) const {
    const ptrdiff_t row = ptrdiff_t(strips) * w;
    for (int k = k_begin; k < k_end; k += w)
      for (int s = 0; s < strips; s += STRIPS)
        in_tiles<INPUTS>(smaller(w, k_end - k), [&](int i, auto r) {
          with_count<STRIPS>(smaller(STRIPS, strips - s), [&](auto n) {
            gradient_tile<T, r.value, n.value>(
                sums + (k - k_begin + i) * row + s * w, row, fresh, here.input_rows,
                k / w * here.next + i, here.delta + (s_begin + s) * strip(), strip(), shards, others,
                apart);
          });
        });
  }

  // Of a sparse X, in the same order.
  void sparse_sums(const T* delta, int strips, int k_begin, int k_end, int x_begin, int x_end,
                   T* sums) const {
    const AbiSparse& rows = *sparse();
    const T* const values = static_cast<const T*>(rows.values);
    for (ptrdiff_t i = 0; i < ptrdiff_t(k_end - k_begin) * strips * w; ++i) sums[i] = T(0);
    for (int x = x_begin; x < x_end; ++x) {
      const int64_t end = rows.starts[row(x) + 1];
      int64_t i = rows.starts[row(x)];
      for (int64_t count = end - i; count > 0;) {  // the first that is not before k_begin
        const int64_t half = count / 2;
        const bool before = rows.columns[i + half] < k_begin;
        i += before ? half + 1 : 0;
        count = before ? count - half - 1 : half;
      }
      for (; i < end && rows.columns[i] < k_end; ++i)
        for (int s = 0; s < strips; ++s) {
          T* const to = sums + (ptrdiff_t(rows.columns[i] - k_begin) * strips + s) * w;
          Strip<T> sum = Strip<T>::load(to);
          sum.add_product(Strip<T>(values[i]), Strip<T>::load(delta + s * strip() + ptrdiff_t(x) * w));
          sum.store(to);
        }
    }
  }

  // BP4 and the rule of R inputs from k on, while the sums are in registers: short batches.
  template <class Rule, int S, int R>
  INLINE void changed_tile(const Layer<T>& here, const T* delta, ptrdiff_t p_at, int k,
                           ptrdiff_t run, const Change& change, Shards shards) const {
    Strip<T> sum[R][S];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < S; ++j) sum[i][j] = Strip<T>::zero();
    add_shards<T, R, S>(sum, here.input_rows, run, delta, strip(), shards);
    __asm__ volatile("" ::: "memory");  // what follows is read now: the sums need all registers
    const Strip<T> share(change.share);
    Strip<T> c[4];
    for (int i = 0; i < 4; ++i) c[i] = Strip<T>(change.c[i]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < S; ++j)
        change_row<Rule>(p_at + (ptrdiff_t(j) * here.inputs + k + i) * w, sum[i][j] * share, c,
                         change, true);
  }

  // All of a chunk but a last run of less than W inputs, which is what it returns.
  template <class Rule, int S>
  __attribute__((noinline)) int changed_chunk(const Layer<T>& here, int s, int k_begin, int k_end,
                                              const Change& change, Shards shards) const {
    constexpr int most = INPUTS < w ? INPUTS : w, tiles = (w + most - 1) / most;
    constexpr int large = (w + tiles - 1) / tiles, small = w / tiles, larger = w % tiles;
    const T* const delta = here.delta + s * strip();
    const ptrdiff_t p_at = here.w + ptrdiff_t(s) * here.inputs * w;
    int k = k_begin;
    for (; k_end - k >= w; k += w) {
      const ptrdiff_t run = k / w * here.next;
      for (int x = 0; s == 0 && x < m; ++x) __builtin_prefetch(here.input_rows[x] + run + here.next);
#pragma GCC unroll 1
      for (int i = 0; i < larger * large; i += large)
        changed_tile<Rule, S, large>(here, delta, p_at, k + i, run + i, change, shards);
#pragma GCC unroll 1
      for (int i = larger * large; i < w; i += small)
        changed_tile<Rule, S, small>(here, delta, p_at, k + i, run + i, change, shards);
    }
    return k;
  }

  // BP3 of a strip: Σ_x δ.
  void sums_of_biases(const Layer<T>& here, int s, Tree tree, T* sums) const {
    const T* const delta = here.delta + s * strip();
    Strip<T> of_level[LEVELS];  // sums that wait
    for (int i = 0; i < tree.count; ++i) {
      Strip<T> sum = Strip<T>::zero();
      const int x_end = begin_of(tree.first + i + 1);
      for (int x = begin_of(tree.first + i); x < x_end; ++x)
        sum += Strip<T>::load(delta + ptrdiff_t(x) * w);
      int level = 0;
      for (; i >> level & 1; ++level) sum += of_level[level];
      of_level[level] = sum;
      sum.store(sums);
    }
  }

  // Where the norm is clipped, first to the gradient, each component within its limit.
  void keep(ptrdiff_t at, const T* sums, ptrdiff_t row, T share, int rows) const {
    T* const to = memory.gradient + at;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < w; ++j)
        to[i * w + j] = clip_by_value(sums[i * row + j] * share, T(member.clip_value));
  }

  // Rows of X that the next step reads, a chunk's columns of them.
  void prefetch(int k_begin, int k_end, int next_rows) const {
    const ptrdiff_t row = ptrdiff_t(memory.layers[0].inputs) * network.stored;
    const char* const bytes = static_cast<const char*>(X);
    const int outputs = last().neurons;
    for (int x = 0; x < next_rows; ++x) {
      const char* const from = bytes + order[m + x] * row;
      if (k_begin == 0) __builtin_prefetch(Y + order[m + x] * outputs, 0, 2);
      for (ptrdiff_t at = ptrdiff_t(k_begin) * network.stored; at < ptrdiff_t(k_end) * network.stored;
           at += 64)
        __builtin_prefetch(from + at, 0, 2);
    }
  }

  double sum_of_squares(const T* p, ptrdiff_t count) const {
    double lane[w] = {};
    for (ptrdiff_t i = 0; i < count; i += w)
      for (int j = 0; j < w; ++j) lane[j] += double(p[i + j]) * double(p[i + j]);
    double sum = 0;
    for (double one : lane) sum += one;
    return sum;
  }

  // Σ (g / largest)² and the largest: the square of the largest itself might overflow.
  void add_norm(const T* g, ptrdiff_t count, double (&norm)[2]) const {
    double top = 0, sum = 0;
    for (ptrdiff_t i = 0; i < count; ++i) {
      const double size = g[i] < T(0) ? -double(g[i]) : double(g[i]);
      top = size > top ? size : top;
    }
    if (!(top > 0 && top <= largest<double>())) top = 0;
    for (ptrdiff_t i = 0; i < count && top > 0; ++i) sum += (double(g[i]) / top) * (double(g[i]) / top);
    norm[0] = top;
    norm[1] = sum;
  }

  // What the gradient is multiplied by to be of the norm `clip_norm` at most.
  double norm_scale() const {
    const int count = 2 * memory.chunks;
    double top = 0, sum = 0;
    for (int i = 0; i < count; i += 2) top = memory.norms[i] > top ? memory.norms[i] : top;
    if (top == 0) return 1;
    for (int i = 0; i < count; i += 2) {
      const double relative = memory.norms[i] / top;
      sum += memory.norms[i + 1] * relative * relative;
    }
    const double norm = top * sqrt(sum);
    return norm > member.clip_norm ? member.clip_norm / norm : 1;
  }

  // The gradient of a layer, for each of this process's trees.
  void gradient_phase(int layer) const {
    each_chunk_of(layer, layer + 1, [&](int, int s_begin, int strips, int k, int end) {
      const Layer<T>& here = memory.layers[layer];
      alignas(64) T sums[LEVELS * CHUNK * CHUNK_STRIPS * w];
      each_tree([&](int number, Tree tree) {
        T* const gradient = memory.gradient + number * memory.length;
        sums_of_chunk(here, s_begin, strips, k, end, tree, sums);
        for (int i = 0; i < strips; ++i) {
          const ptrdiff_t s = s_begin + i;
          T* const to = gradient + here.w + (s * here.inputs + k) * w;
          for (ptrdiff_t j = 0; j < end - k; ++j) copy_run(sums + (j * strips + i) * w, to + j * w);
          if (k == 0) sums_of_biases(here, int(s), tree, gradient + here.b + s * w);
        }
      });
    });
  }

  // The rule, with a gradient that is complete.
  void change_phase(const double* coefficients) const {
    const Change change(member, coefficients, rows_of_step);
    each_chunk([&](int l, int s_begin, int strips, int k, int end) {
      const Layer<T>& here = memory.layers[l];
      for (int s = s_begin; s < s_begin + strips; ++s) {
        const T* const gradient = memory.gradient + here.w + (ptrdiff_t(s) * here.inputs + k) * w;
        if (member.squares) square(here, s, k, end);
        take(change, l, s, k, k, end, gradient, w, memory.gradient + here.b + s * w);
      }
    });
    if (memory.clips) change_by_norm(change);
  }

  // Σ w² of a chunk's strip.
  void square(const Layer<T>& here, int s, int k, int end) const {
    const T* const p = memory.p + here.w + (ptrdiff_t(s) * here.inputs + k) * w;
    memory.squares[chunk_number(here, s, k)] = sum_of_squares(p, ptrdiff_t(end - k) * w);
  }

  // What becomes of the sums of a chunk's strip, rows `row` apart, of inputs `rest` to `end`.
  INLINE void take(const Change& change, int l, int s, int k, int rest, int end, const T* sums,
                   ptrdiff_t row, const T* of_biases) const {
    const Layer<T>& here = memory.layers[l];
    const ptrdiff_t at = here.w + (ptrdiff_t(s) * here.inputs + rest) * w, b = here.b + s * w;
    if (memory.clips) {
      keep(at, sums, row, change.share, end - rest);
      if (k == 0) keep(b, of_biases, w, change.share, 1);
      return norm_of_chunk(here, s, k, end);
    }
    apply(change, at, sums, row, change.share, end - rest, true);
    if (k == 0) apply(change, b, of_biases, w, change.share, 1, false);
    if (l > 0) transpose(here, s, k, end);
  }

  void weights_phase(const double* coefficients, int next_rows) const {
    const Change change(member, coefficients, rows_of_step);
    const bool at_once =
        m <= ROWS_AT_ONCE && member.shards <= TILE_SHARDS && !memory.clips && !change.adjusts;
    int begin[TILE_SHARDS + 1];
    for (int i = 0; at_once && i <= member.shards; ++i) begin[i] = begin_of(i);
    const Shards shards{begin, member.shards};
    each_chunk([&](int l, int s_begin, int strips, int k, int end) {
      const Layer<T>& here = memory.layers[l];
      alignas(64) T sums[LEVELS * CHUNK * CHUNK_STRIPS * w], of_biases[w];
      if (l == 0 && s_begin == 0 && member.in_place && !sparse()) prefetch(k, end, next_rows);
      int rest = k;  // inputs from there on are not done yet
      for (int s = s_begin; member.squares && s < s_begin + strips; ++s) square(here, s, k, end);
      const bool changes = at_once && !(l == 0 && sparse());
      for (int s = 0; changes && s < strips; s += STRIPS)
        with_count<STRIPS>(smaller(STRIPS, strips - s), [&](auto n) {
          with_rule(member.rule, [&](auto rule) {
            rest = changed_chunk<decltype(rule), n.value>(here, s_begin + s, k, end, change, shards);
          });
        });
      const Tree tree{0, member.shards};
      if (rest < end) sums_of_chunk(here, s_begin, strips, rest, end, tree, sums);
      for (int i = 0; i < strips; ++i) {
        if (k == 0) sums_of_biases(here, s_begin + i, tree, of_biases);
        take(change, l, s_begin + i, k, rest, end, sums + i * w, strips * w, of_biases);
      }
    });
    if (memory.clips) change_by_norm(change);
  }

  // The rule, where the gradient's norm is clipped: once its chunks' norms are there.
  void change_by_norm(const Change& change) const {
    meet(team);
    const T scale = T(norm_scale());
    each_chunk([&](int l, int s_begin, int strips, int k, int end) {
      const Layer<T>& here = memory.layers[l];
      for (int s = s_begin; s < s_begin + strips; ++s) {
        const ptrdiff_t at = here.w + (ptrdiff_t(s) * here.inputs + k) * w, b = here.b + s * w;
        apply(change, at, memory.gradient + at, w, scale, end - k, true);
        if (k == 0) apply(change, b, memory.gradient + b, w, scale, 1, false);
        if (l > 0) transpose(here, s, k, end);
      }
    });
  }

  void norm_of_chunk(const Layer<T>& here, int s, int k, int end) const {
    const T* const g = memory.gradient + here.w + (ptrdiff_t(s) * here.inputs + k) * w;
    double of_weights[2], of_biases[2] = {0, 0};
    add_norm(g, ptrdiff_t(end - k) * w, of_weights);
    if (k == 0) add_norm(memory.gradient + here.b + s * w, w, of_biases);
    double* const norm = memory.norms + 2 * chunk_number(here, s, k);
    const bool biases = of_biases[0] > of_weights[0];
    const double* const more = biases ? of_biases : of_weights;
    const double* const less = biases ? of_weights : of_biases;
    const double relative = more[0] > 0 ? less[0] / more[0] : 0;
    norm[0] = more[0];
    norm[1] = more[1] + less[1] * relative * relative;
  }

  // ------------------------------------------------------------------------ phase C: norms of w_j

  // w_j ← w_j min(1, max_norm / ‖w_j‖). A thread has all inputs of W neurons.
  void limit_norms() const {
    int number = 0;
    for (int l = 0; l < memory.depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      for (int s = 0; s < here.strips; ++s)
        if (number++ % team.threads == thread && limit_strip(here, s) && l > 0)
          transpose(here, s, 0, here.inputs);
    }
  }

  // Whether any of them was beyond the limit.
  bool limit_strip(const Layer<T>& here, int s) const {
    T* const p = memory.p + here.w + ptrdiff_t(s) * here.inputs * w;
    Strip<T> sum = Strip<T>::zero();
    for (ptrdiff_t k = 0; k < here.inputs; ++k)
      sum.add_product(Strip<T>::load(p + k * w), Strip<T>::load(p + k * w));
    alignas(64) T scale[w];
    sum.store(scale);
    bool limits = false;
    for (int j = 0; j < w; ++j) {
      double norm = sqrt(double(scale[j]));
      if (!(scale[j] <= largest<T>())) norm = norm_of_column(p + j, here.inputs);
      scale[j] = norm > member.max_norm ? T(member.max_norm / norm) : T(1);
      limits = limits || norm > member.max_norm;
    }
    const Strip<T> scales = Strip<T>::load(scale);
    for (ptrdiff_t k = 0; limits && k < here.inputs; ++k)
      (Strip<T>::load(p + k * w) * scales).store(p + k * w);
    return limits;
  }

  // Of numbers W apart, whose squares may overflow; NaN where one is, or is infinite.
  double norm_of_column(const T* p, ptrdiff_t count) const {
    double top = 0, sum = 0;
    for (ptrdiff_t k = 0; k < count; ++k) {
      const double size = p[k * w] < T(0) ? -double(p[k * w]) : double(p[k * w]);
      top = size > top ? size : top;
    }
    for (ptrdiff_t k = 0; k < count; ++k)
      sum += (double(p[k * w]) / top) * (double(p[k * w]) / top);
    return top * sqrt(sum);
  }

  // ------------------------------------------------------------------------------------- the steps

  // `whole` is whether every call reads the parameters and writes them.
  void run(int64_t first, int64_t last_step, bool whole, Part part, int layer) {
    const int64_t steps_of_epoch = units_of(member.rows, member.batch);
    const int64_t steps = steps_of_epoch * member.epochs;
    if (last_step > steps) last_step = steps;
    if (first >= last_step) return;
    const bool begins = part == WHOLE || part == ROWS_OF_STEP, ends = part == WHOLE || part == CHANGE;
    if (begins && (first == 0 || whole)) begin();
    meet(team);
    for (int64_t step = first; step < last_step; ++step) {
      const int64_t done = step % steps_of_epoch * member.batch, left = member.rows - done;
      order = member.order + step / steps_of_epoch * member.rows + done;
      rows_of_step = int(left < member.batch ? left : member.batch);
      const int64_t own = first_row_of(member.first_shard);
      if (member.weights) weights = static_cast<const T*>(member.weights) + (order - member.order) + own;
      order += own;
      if (member.rates) {
        const uint64_t of_epoch = member.keys[step / steps_of_epoch];
        key[0] = unsigned(of_epoch), key[1] = unsigned(of_epoch >> 32);
        step_of_epoch = unsigned(member.first_step + step % steps_of_epoch);
      }
      m = begin_of(member.end_shard);
      const double* const coefficients = member.coefficients + 6 * step;
      if (begins) {
        if (memory.by_inputs) {
          inputs_phase();
          meet(team);
        }
        rows_phase();
        meet(team);
        if (thread == team.threads - 1) costs_of_step(member.costs + step * member.shards);
      }
      if (part == WHOLE) {
        const int64_t behind = left - m;
        weights_phase(coefficients, int(behind < member.batch ? behind : member.batch));
      } else if (part == GRADIENT) {
        gradient_phase(layer);
      } else if (part == CHANGE) {
        change_phase(coefficients);
      }
      meet(team);
      if (ends && member.max_norm <= largest<double>()) {
        limit_norms();
        meet(team);
      }
      if (ends && thread == 0 && member.squares) {
        double sum = 0;
        for (int i = 0; i < memory.chunks; ++i) sum += memory.squares[i];
        member.squares[step] = sum;
      }
    }
    if (ends && (last_step == steps || whole) && thread == 0) end();
    meet(team);
  }
};

}  // namespace
