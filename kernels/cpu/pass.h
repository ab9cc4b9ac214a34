// Rows through a network whose parameters stay as they are, and back: reading, gradients, and the
// two halves of a step of PyTorch's.
//
// Three ways, of the same sums but for the last one's:
//
//   READ    blocks of rows, each with the memory of its thread; parameters in strips, once for all
//   others  all rows at once, in the two phases of an epoch: rows, then chunks of w, whose BP4 goes
//           from the tile's sums straight to where the caller wants it
//   alone   one row: w as it comes is multiplied by a and by δ, by its rows or their sum, and BP4 is
//           δ aᵀ. Nothing is packed, and each number of w is read once.
//
//   forward    z^l = a^{l-1} w^lᵀ + b^l, a^l = σ(z^l)        (m, n_l)
//   BP1, BP2   δ^L from C or from ∂C/∂a^L; δ^{l-1} = δ^l w^l ⊙ σ'
//   BP3, BP4   Σ_x s_x δ^l / total, Σ_x s_x δ^l a^{l-1} / total; s is in δ^L
//
// Roof. The products' (product.h); packing w and turning BP4's tiles round come on top, a number of w
// each, which m rows share. Of a row alone it is the bandwidth of the cache that w lies in.
#pragma once
#include "epoch.h"

namespace {

template <class T> struct Pass {
  static constexpr int w = W<T>;

  const AbiPass& pass;
  const int depth = pass.network->depth;
  const bool alone = pass.rows == 1 && pass.network->stored &&
                     (pass.stage == READ || pass.stage == GRADIENTS) && !pass.inputs_error;
  const AbiMember reader = reader_of(pass);

  static AbiMember reader_of(const AbiPass& pass) {
    AbiMember reader{};
    reader.batch = int(pass.stage == READ ? pass.block : pass.rows);
    reader.block = pass.block;
    reader.in_place = pass.in_place;
    return reader;
  }

  Memory<T> memory(char* begin, int threads, int thread) const {
    const Use use = alone ? ALONE : pass.stage == READ ? READING : PASSING;
    return {Arena{begin}, *pass.network, reader, threads, thread, use, pass.inputs_error != nullptr};
  }

  // Of READ: where the first thread's own memory begins, behind the parameters in strips.
  size_t shared() const {
    return size_t(units_of(memory(nullptr, 1, 0).length * ptrdiff_t(sizeof(T)), 64)) * 64;
  }

  size_t bytes() const {
    if (alone) return memory(nullptr, 1, 0).bytes;
    if (pass.stage != READ) return memory(nullptr, pass.threads, 0).bytes;
    return shared() + size_t(pass.threads) * memory(nullptr, 1, 0).bytes;
  }

  const T* weights(int l) const { return static_cast<const T*>(pass.parameters[l]); }
  const T* biases(int l) const { return static_cast<const T*>(pass.parameters[depth + l]); }
  T* gradient(int i) const { return static_cast<T*>(pass.gradients[i]); }

  Epoch<T> epoch(const Memory<T>& memory, const Team& team, int thread) const {
    Epoch<T> found{*pass.network, reader, team, thread, memory, pass.X, static_cast<const T*>(pass.Y)};
    found.x_row = pass.x_row;
    found.m = reader.batch;
    return found;
  }

  void run(const Team& team, int thread) const {
    if (alone) {
      if (thread == 0) run_alone(team);
    } else if (pass.stage == READ) {
      read(team, thread);
    } else {
      all_rows(team, thread);
    }
  }

  // ------------------------------------------------------------------------------------------ READ

  void read(const Team& team, int thread) const {
    char* const begin = static_cast<char*>(pass.memory);
    char* const own = begin + shared() + size_t(thread) * memory(nullptr, 1, 0).bytes;
    Memory<T> blocks = memory(own, 1, 0);
    blocks.p = reinterpret_cast<T*>(begin);
    Epoch<T> epoch = this->epoch(blocks, team, thread);
    for (int l = 0; l < depth; ++l)
      epoch.into_strips(blocks.layers[l], weights(l), biases(l), blocks.p, pass.inputs_first);
    epoch.connect();
    meet(team);
    // From here on a thread has the layers and the scratch memory for itself.
    const Team itself{1, nullptr, nullptr, nullptr};
    Epoch<T> reading = this->epoch(blocks, itself, 0);
    const int64_t count = units_of(pass.rows, pass.block);
    for (int64_t number = thread; number < count; number += team.threads) {
      reading.first_row = number * pass.block;
      const int64_t left = pass.rows - reading.first_row;
      const int rows = reading.m = int(left < pass.block ? left : pass.block);
      reading.gather(0, rows);
      for (int l = 0; l < depth; ++l) reading.forward(l, 0, rows);
      outputs_and_costs(reading, 0, rows);
      if (pass.costs) pass.costs[number] = reading.sum_of_costs();
    }
  }

  // a^L of rows that are through, and what C is made of.
  void outputs_and_costs(const Epoch<T>& epoch, int x_begin, int x_end) const {
    if (epoch.Y) epoch.output_error(x_begin, x_end);
    else epoch.activate_outputs(x_begin, x_end);
    if (pass.outputs)
      into_rows(epoch, epoch.last().a, epoch.last().neurons, static_cast<T*>(pass.outputs), x_begin,
                x_end);
  }

  // Strips into rows of n numbers.
  void into_rows(const Epoch<T>& epoch, const T* strips, ptrdiff_t n, T* rows, int x_begin,
                 int x_end) const {
    for (ptrdiff_t x = x_begin; x < x_end; ++x) {
      T* const to = rows + (epoch.first_row + x) * n;
      for (ptrdiff_t j = 0; j < n; j += w) {
        const T* const from = strips + j / w * epoch.strip() + x * w;
        if (n - j >= w) Strip<T>::load(from).store_anywhere(to + j);
        else for (ptrdiff_t i = 0; i < n - j; ++i) to[j + i] = from[i];
      }
    }
  }

  // ------------------------------------------------------------------------------------- all rows

  // The lowest layer whose δ somebody wants.
  int lowest() const {
    for (int l = 0; l < depth; ++l)
      if (pass.inputs_error || gradient(l) || gradient(depth + l)) return l;
    return depth;
  }

  void all_rows(const Team& team, int thread) const {
    // There may be fewer threads than the memory is for, and in BACKWARD others than in FORWARD.
    const Memory<T> memory = this->memory(static_cast<char*>(pass.memory), pass.threads, thread);
    const Epoch<T> epoch = this->epoch(memory, team, thread);
    const bool forward = pass.stage != BACKWARD, backward = pass.stage != FORWARD;
    const int lowest = backward ? this->lowest() : depth;
    for (int l = 0; l < depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      if (forward) epoch.into_strips(here, weights(l), biases(l), memory.p, pass.inputs_first);
      if (l > lowest || (backward && pass.inputs_error))
        epoch.transpose_all(here, weights(l), pass.inputs_first);
    }
    if (thread == 0) epoch.connect();
    meet(team);
    const int blocks = int(units_of(pass.rows, pass.block));
    for (int number = thread; number < blocks; number += team.threads) {
      const int x = int(pass.rows * number / blocks), end = int(pass.rows * (number + 1) / blocks);
      if (forward) epoch.gather(x, end);
      else if (!memory.x) epoch.find_rows(x, end);
      for (int l = 0; forward && l < depth; ++l) epoch.forward(l, x, end);
      if (forward) outputs_and_costs(epoch, x, end);
      else epoch.error_from(static_cast<const T*>(pass.error) + ptrdiff_t(x) * epoch.last().neurons, x, end);
      if (backward && pass.weights) epoch.weigh(pass.weights, x, end);
      for (int l = depth - 1; l > lowest; --l) epoch.hidden_error(l, x, end);
      if (backward && pass.inputs_error) inputs_error(epoch, x, end);
    }
    meet(team);
    if (backward) gradients(epoch);
    if (pass.costs && thread == 0) *pass.costs = epoch.sum_of_costs();
  }

  // ∂C/∂x = δ^1 w^1.
  void inputs_error(const Epoch<T>& epoch, int x_begin, int x_end) const {
    const Layer<T>& first = epoch.memory.layers[0];
    T* const strips = epoch.memory.x_error;
    epoch.product(strips + ptrdiff_t(x_begin) * w, epoch.strip(), first.delta_rows + x_begin, epoch.strip(),
                  first.transposed, ptrdiff_t(first.neurons) * w, first.neurons, first.neurons,
                  x_end - x_begin, int(units_of(first.inputs, w)), nullptr);
    into_rows(epoch, strips, first.inputs, static_cast<T*>(pass.inputs_error), x_begin, x_end);
  }

  // BP3 and BP4 of this thread's chunks.
  void gradients(const Epoch<T>& epoch) const {
    const T share = T(1) / T(pass.total);
    epoch.each_chunk([&](int l, int s_begin, int strips, int k_begin, int k_end) {
      const Layer<T>& here = epoch.memory.layers[l];
      alignas(64) T sums[CHUNK * CHUNK_STRIPS * w];
      if (gradient(l)) {
        epoch.sums_of_chunk(here, s_begin, strips, k_begin, k_end, sums);
        for (int s = 0; s < strips; ++s)
          write_tile(here, s_begin + s, k_begin, k_end, sums + s * w, strips * w, share, gradient(l));
      }
      for (int s = s_begin; k_begin == 0 && gradient(depth + l) && s < s_begin + strips; ++s) {
        epoch.sums_of_biases(here, s, sums);
        for (int j = 0; j < smaller(w, here.neurons - s * w); ++j)
          gradient(depth + l)[s * w + j] = sums[j] * share;
      }
    });
  }

  // Sums of a strip's neurons, a row an input, times `share` to where w's gradient is wanted.
  void write_tile(const Layer<T>& here, int s, int k_begin, int k_end, const T* sums, ptrdiff_t row,
                  T share, T* to) const {
    const int columns = smaller(w, here.neurons - s * w);
    for (ptrdiff_t k = k_begin; pass.inputs_first && k < k_end; ++k, sums += row) {
      T* const out = to + k * here.neurons + s * w;
      if (columns == w) (Strip<T>::load(sums) * Strip<T>(share)).store_anywhere(out);
      else for (int j = 0; j < columns; ++j) out[j] = sums[j] * share;
    }
    if (!pass.inputs_first)
      copy_transposed(sums, row, k_end - k_begin, columns,
                      to + ptrdiff_t(s) * w * here.inputs + k_begin, here.inputs, share);
  }

  // ---------------------------------------------------------------------------------------- alone

  void run_alone(const Team& team) const {
    const Memory<T> memory = this->memory(static_cast<char*>(pass.memory), 1, 0);
    const Epoch<T> epoch = this->epoch(memory, team, 0);
    epoch.gather(0, 1);
    const auto inputs = [&](int l) -> const T* {
      return l > 0 ? memory.layers[l - 1].a : memory.x ? memory.x : static_cast<const T*>(pass.X);
    };
    for (int l = 0; l < depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      T* const z = here.z ? here.z : here.a;
      if (pass.inputs_first) sum_of_rows(weights(l), here.inputs, here.neurons, inputs(l), z);
      else products_of_rows(weights(l), here.neurons, here.inputs, inputs(l), z);
      for (int j = 0; j < here.neurons; ++j) z[j] += biases(l)[j];
      if (l < depth - 1) epoch.activate(here, z, here.a, here.strips * w);
    }
    outputs_and_costs(epoch, 0, 1);
    if (pass.weights) epoch.weigh(pass.weights, 0, 1);
    if (pass.costs) *pass.costs = epoch.sum_of_costs();
    if (pass.stage == READ) return;
    const T share = T(1) / T(pass.total);
    for (int l = depth - 1;; --l) {
      const Layer<T>& here = memory.layers[l];
      T* const to = gradient(l);
      if (to && pass.inputs_first)
        outer_product(inputs(l), here.inputs, here.delta, here.neurons, share, to);
      else if (to)
        outer_product(here.delta, here.neurons, inputs(l), here.inputs, share, to);
      for (int j = 0; gradient(depth + l) && j < here.neurons; ++j)
        gradient(depth + l)[j] = here.delta[j] * share;
      if (l == 0) break;
      const Layer<T>& below = memory.layers[l - 1];
      if (pass.inputs_first)
        products_of_rows(weights(l), here.inputs, here.neurons, here.delta, below.delta);
      else
        sum_of_rows(weights(l), here.neurons, here.inputs, here.delta, below.delta);
      epoch.pull_back(below, below.described->from_z ? below.z : below.a, below.delta,
                      epoch.scratch(), below.strips * w);
    }
  }

  // n < W numbers, and zeros behind them.
  static INLINE Strip<T> part(const T* from, int n) {
    alignas(64) T numbers[w] = {};
    for (int i = 0; i < n; ++i) numbers[i] = from[i];
    return Strip<T>::load(numbers);
  }

  // out_r = Σ_c M(r, c) v_c; what fills up the last strip of out is 0.
  static void products_of_rows(const T* M, int rows, int columns, const T* v, T* out) {
    const int rest = columns % w;
    const Strip<T> last = part(v + columns - rest, rest);
    constexpr int AT_ONCE = 4;
    for (int r = 0; r < rows; r += AT_ONCE)
      with_count<AT_ONCE>(smaller(AT_ONCE, rows - r), [&](auto many) {
        constexpr int R = many.value;
        const T* const from = M + ptrdiff_t(r) * columns;
        Strip<T> sum[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i] = Strip<T>::zero();
        for (int c = 0; c < columns - rest; c += w) {
          const Strip<T> factor = Strip<T>::load_anywhere(v + c);
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i)
            sum[i].add_product(factor, Strip<T>::load_anywhere(from + ptrdiff_t(i) * columns + c));
        }
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          if (rest) sum[i].add_product(last, part(from + ptrdiff_t(i + 1) * columns - rest, rest));
          alignas(64) T lane[w];
          sum[i].store(lane);
          for (int distance = w / 2; distance > 0; distance /= 2)
            for (int c = 0; c < distance; ++c) lane[c] += lane[c + distance];
          out[r + i] = lane[0];
        }
      });
    for (ptrdiff_t r = rows; r < units_of(rows, w) * w; ++r) out[r] = T(0);
  }

  // out = Σ_r v_r M(r, ·); what fills up its last strip is 0.
  static void sum_of_rows(const T* M, int rows, int columns, const T* v, T* out) {
    const int rest = columns % w, strips = columns / w;
    constexpr int AT_ONCE = 4;
    for (int s = 0; s < strips; s += AT_ONCE)
      with_count<AT_ONCE>(smaller(AT_ONCE, strips - s), [&](auto many) {
        constexpr int R = many.value;
        Strip<T> sum[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i] = Strip<T>::zero();
        for (ptrdiff_t r = 0; r < rows; ++r) {
          const Strip<T> value(v[r]);
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i)
            sum[i].add_product(value, Strip<T>::load_anywhere(M + r * columns + (s + i) * w));
        }
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i].store(out + (s + i) * w);
      });
    if (rest == 0) return;
    Strip<T> sum = Strip<T>::zero();
    for (ptrdiff_t r = 0; r < rows; ++r)
      sum.add_product(Strip<T>(v[r]), part(M + (r + 1) * columns - rest, rest));
    sum.store(out + strips * w);
  }

  // out = share u vᵀ.
  static void outer_product(const T* u, int rows, const T* v, int columns, T share, T* out) {
    for (int r = 0; r < rows; ++r, out += columns) {
      int c = 0;
      for (; c <= columns - w; c += w)
        (Strip<T>(u[r]) * Strip<T>::load_anywhere(v + c) * Strip<T>(share)).store_anywhere(out + c);
      for (; c < columns; ++c) out[c] = u[r] * v[c] * share;
    }
  }
};

}  // namespace
