// Rows through a network whose parameters stay as they are, and back: reading, gradients, and the
// two halves of a step of PyTorch's.
//
// Three ways:
//
//   READ      blocks of rows, each with the memory of its thread; parameters in strips, once for all
//   others    all rows at once, in the two phases of an epoch: rows, then BP3 and BP4, from the tile's
//             sums straight to where the caller wants them
//   few rows  so, too, but w as it comes is multiplied by a and by δ, by its rows or their sum:
//             nothing is packed, and threads share out neurons
//
//   forward    z^l = a^{l-1} w^lᵀ + b^l, a^l = σ(z^l)        (m, n_l)
//   BP1, BP2   δ^L from C or from ∂C/∂a^L; δ^{l-1} = δ^l w^l ⊙ σ'
//   BP3, BP4   Σ_x s_x δ^l / total, Σ_x s_x δ^l a^{l-1} / total; s is in δ^L
//
// Roof. The products' (product.h); packing w comes on top, which m rows share. Of a row alone it is
// the bandwidth of the cache that w lies in.
//
// Sums of few rows over what lies in a row of w are made in W lanes, which are added by halves.
#pragma once
#include "epoch.h"

namespace {

// Rows up to which packing w takes longer than it saves.
constexpr int FEW = 16;
// Rows up to which BP4's tiles are made where they are to be, rather than turned round.
constexpr int AT_ONCE = 64;

template <class T> struct Pass {
  static constexpr int w = W<T>;

  const AbiPass& pass;
  const int depth = pass.network->depth;
  // The bits of a row that is read do not depend on how many others are.
  const bool few = pass.network->stored && (pass.stage == READ ? pass.rows == 1 : pass.rows <= FEW);
  const AbiMember reader = reader_of(pass, few);

  static AbiMember reader_of(const AbiPass& pass, bool few) {
    AbiMember reader{};
    reader.batch = int(pass.stage == READ ? pass.block : pass.rows);
    reader.block = few ? reader.batch : pass.block;
    reader.in_place = pass.in_place;
    reader.shards = reader.end_shard = 1;
    return reader;
  }

  Memory<T> memory(char* begin, int threads, int thread) const {
    const Use use = few ? UNPACKED : pass.stage == READ ? READING : PASSING;
    return {Arena{begin}, *pass.network, reader, threads, thread, use, pass.inputs_error != nullptr};
  }

  // Of READ: where the first thread's own memory begins, behind the parameters in strips.
  size_t shared() const {
    return size_t(units_of(memory(nullptr, 1, 0).length * ptrdiff_t(sizeof(T)), 64)) * 64;
  }

  size_t bytes() const {
    if (few || pass.stage != READ) return memory(nullptr, pass.threads, 0).bytes;
    return shared() + size_t(pass.threads) * memory(nullptr, 1, 0).bytes;
  }

  const T* weights(int l) const { return static_cast<const T*>(pass.parameters[l]); }
  const T* biases(int l) const { return static_cast<const T*>(pass.parameters[depth + l]); }
  T* gradient(int i) const { return static_cast<T*>(pass.gradients[i]); }

  Epoch<T> epoch(const Memory<T>& memory, const Team& team, int thread) const {
    Epoch<T> found{*pass.network, reader, team, thread, memory, pass.X, static_cast<const T*>(pass.Y)};
    found.x_row = pass.x_row;
    found.m = found.rows_of_step = reader.batch;
    found.weights = static_cast<const T*>(pass.weights);
    return found;
  }

  void run(const Team& team, int thread) const {
    if (few) {
      few_rows(team, thread);
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
      if (pass.weights) reading.weights = static_cast<const T*>(pass.weights) + reading.first_row;
      if (pass.costs) reading.weigh(0, rows);
      if (pass.costs) pass.costs[number] = reading.sum_of_costs(0, rows);
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
        const Strip<T> strip = Strip<T>::load(strips + j / w * epoch.strip() + x * w);
        if (n - j >= w) strip.store_anywhere(to + j);
        else strip.store_part(to + j, int(n - j));
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
      if (backward) epoch.weigh(x, end);
      for (int l = depth - 1; l > lowest; --l) epoch.hidden_error(l, x, end);
      if (backward && pass.inputs_error) inputs_error(epoch, x, end);
    }
    meet(team);
    if (backward) gradients(epoch, lowest);
    if (pass.costs && thread == 0) *pass.costs = epoch.sum_of_costs(0, epoch.m);
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

  struct Range {
    int begin, end;
  };

  // Of so many units this thread's.
  static Range share(const Epoch<T>& epoch, ptrdiff_t units) {
    const int threads = epoch.team.threads, thread = epoch.thread;
    return {int(units * thread / threads), int(units * (thread + 1) / threads)};
  }

  void gradients(const Epoch<T>& epoch, int lowest) const {
    const T scale = T(1) / T(pass.total);
    if (epoch.sparse() || epoch.m > AT_ONCE) gradients_by_chunks(epoch, scale);
    else gradients_at_once(epoch, scale, lowest);
  }

  // BP3 and BP4 of this thread's chunks.
  void gradients_by_chunks(const Epoch<T>& epoch, T scale) const {
    epoch.each_chunk([&](int l, int s_begin, int strips, int k_begin, int k_end) {
      const Layer<T>& here = epoch.memory.layers[l];
      if (gradient(l)) {
        alignas(64) T sums[CHUNK * CHUNK_STRIPS * w];
        epoch.sums_of_chunk(here, s_begin, strips, k_begin, k_end, {}, sums);
        for (int s = 0; s < strips; ++s)
          write_tile(here, s_begin + s, k_begin, k_end, sums + s * w, strips * w, scale, gradient(l));
      }
      for (int s = s_begin; k_begin == 0 && s < s_begin + strips; ++s)
        bias_gradient(epoch, l, s, scale);
    });
  }

  // BP3 and BP4 of this thread's rows of w.
  void gradients_at_once(const Epoch<T>& epoch, T scale, int lowest) const {
    for (int l = lowest; l < depth; ++l) {
      const Layer<T>& here = epoch.memory.layers[l];
      const Rows of_inputs{here.input_rows, here.next, here.inputs};
      const Rows of_delta{here.delta_rows, epoch.strip(), here.neurons};
      const Rows& u = pass.inputs_first ? of_inputs : of_delta;
      const Rows& v = pass.inputs_first ? of_delta : of_inputs;
      if (gradient(l)) outer_products(u, v, epoch.m, scale, gradient(l), share(epoch, u.numbers));
      const Range strips = share(epoch, here.strips);
      for (int s = strips.begin; s < strips.end; ++s) bias_gradient(epoch, l, s, scale);
    }
  }

  void bias_gradient(const Epoch<T>& epoch, int l, int s, T scale) const {
    if (!gradient(depth + l)) return;
    const Layer<T>& here = epoch.memory.layers[l];
    alignas(64) T sums[w];
    epoch.sums_of_biases(here, s, {}, sums);
    const Strip<T> found = Strip<T>::load(sums) * Strip<T>(scale);
    found.store_part(gradient(depth + l) + s * w, smaller(w, here.neurons - s * w));
  }

  // Sums of a strip's neurons, a row an input, times `scale` to where w's gradient is wanted.
  void write_tile(const Layer<T>& here, int s, int k_begin, int k_end, const T* sums, ptrdiff_t row,
                  T scale, T* to) const {
    const int columns = smaller(w, here.neurons - s * w);
    for (ptrdiff_t k = k_begin; pass.inputs_first && k < k_end; ++k, sums += row) {
      const Strip<T> strip = Strip<T>::load(sums) * Strip<T>(scale);
      strip.store_part(to + k * here.neurons + s * w, columns);
    }
    if (!pass.inputs_first)
      copy_transposed(sums, row, k_end - k_begin, columns,
                      to + ptrdiff_t(s) * w * here.inputs + k_begin, here.inputs, scale);
  }

  // Rows of so many numbers, in runs of W that are `next` apart.
  struct Rows {
    const T* const* begin;
    ptrdiff_t next;
    int numbers;

    ptrdiff_t at(int j) const { return j / w * next + j % w; }
  };

  // out(r, ·) = scale Σ_x u(x, r) v(x, ·) for a range of r. So many numbers of v at once that they stay
  // in a core's L1 cache.
  static void outer_products(Rows u, Rows v, int m, T scale, T* out, Range range) {
    const int at_once = 3 * AT_ONCE / m * w;
    for (int c = 0; c < v.numbers; c += at_once)
      for (int r = range.begin; r < range.end; r += 6)
        with_count<6>(smaller(6, range.end - r), [&](auto n) {
          outer_rows<n.value>(u, v, m, scale, r, c, smaller(c + at_once, v.numbers), out);
        });
  }

  // R rows of it, columns c to c_end.
  template <int R>
  static __attribute__((noinline)) void outer_rows(const Rows& u, const Rows& v, int m, T scale, int r,
                                                   int c, int c_end, T* out) {
    ptrdiff_t at[R];
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i) at[i] = u.at(r + i);
    out += ptrdiff_t(r) * v.numbers;
    for (; c < c_end; c += w) {
      const int width = c_end - c;
      const ptrdiff_t v_at = v.at(c);
      Strip<T> sum[R];
#pragma GCC unroll 6
      for (int i = 0; i < R; ++i) sum[i] = Strip<T>::zero();
      const auto add = [&](int x, Strip<T> row) __attribute__((always_inline)) {
        const T* const of = u.begin[x];
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) sum[i].add_product(Strip<T>(of[at[i]]), row);
      };
      if (width >= w)
        for (int x = 0; x < m; ++x) add(x, Strip<T>::load_anywhere(v.begin[x] + v_at));
      else
        for (int x = 0; x < m; ++x) add(x, Strip<T>::load_part(v.begin[x] + v_at, width));
#pragma GCC unroll 6
      for (int i = 0; i < R; ++i) {
        T* const to = out + i * ptrdiff_t(v.numbers) + c;
        const Strip<T> found = sum[i] * Strip<T>(scale);
        if (width >= w) found.store_anywhere(to);
        else found.store_part(to, width);
      }
    }
  }

  // ------------------------------------------------------------------------------------- few rows

  void few_rows(const Team& team, int thread) const {
    const Memory<T> memory = this->memory(static_cast<char*>(pass.memory), pass.threads, thread);
    const Epoch<T> epoch = this->epoch(memory, team, thread);
    const int m = int(pass.rows);
    const bool forward = pass.stage != BACKWARD;
    const bool backward = pass.stage == BACKWARD || pass.stage == GRADIENTS;
    if (thread == 0) {
      epoch.connect();
      if (forward) epoch.gather(0, m);
      else if (!memory.x) epoch.find_rows(0, m);
    }
    meet(team);
    for (int l = 0; forward && l < depth; ++l) {
      const Layer<T>& here = memory.layers[l];
      const Range mine = share(epoch, here.strips);
      T* const z = here.z ? here.z : here.a;
      product(epoch, l, true, z, mine);
      for (int s = mine.begin; s < mine.end; ++s) {
        const Strip<T> bias = Strip<T>::load_part(biases(l) + s * w, here.neurons - s * w);
        T* const strip = z + s * epoch.strip();
        for (int x = 0; x < m; ++x) (Strip<T>::load(strip + x * w) + bias).store(strip + x * w);
        if (l < depth - 1) epoch.activate(here, strip, here.a + s * epoch.strip(), ptrdiff_t(m) * w);
      }
      meet(team);
    }
    if (thread == 0) {
      if (forward) outputs_and_costs(epoch, 0, m);
      else epoch.error_from(static_cast<const T*>(pass.error), 0, m);
      if (backward || epoch.Y) epoch.weigh(0, m);
      if (pass.costs) *pass.costs = epoch.sum_of_costs(0, m);
    }
    if (!backward) return;
    meet(team);
    const int lowest = this->lowest();
    for (int l = depth - 1; l > lowest; --l) {
      const Layer<T>& below = memory.layers[l - 1];
      const Range mine = share(epoch, below.strips);
      product(epoch, l, false, below.delta, mine);
      for (int s = mine.begin; s < mine.end; ++s)
        epoch.pull_back(below, (below.described->from_z ? below.z : below.a) + s * epoch.strip(),
                        below.delta + s * epoch.strip(), epoch.scratch(), ptrdiff_t(m) * w);
      meet(team);
    }
    if (memory.x_error) {
      const int inputs = memory.layers[0].inputs;
      product(epoch, 0, false, memory.x_error, share(epoch, units_of(inputs, w)));
      meet(team);
      if (thread == 0)
        into_rows(epoch, memory.x_error, inputs, static_cast<T*>(pass.inputs_error), 0, m);
    }
    gradients(epoch, lowest);
  }

  // Strips of a^{l-1} w^lᵀ, forward, or of δ^l w^l. What fills up the last one is 0.
  void product(const Epoch<T>& epoch, int l, bool forward, T* out, Range strips) const {
    const Layer<T>& here = epoch.memory.layers[l];
    const T* const* const rows = forward ? here.input_rows : here.delta_rows;
    const ptrdiff_t next = forward ? here.next : epoch.strip();
    int of_w = here.neurons, columns = here.inputs;
    if (pass.inputs_first) of_w = here.inputs, columns = here.neurons;
    if (forward != bool(pass.inputs_first))
      products_of_rows(weights(l), of_w, columns, rows, next, epoch.m, out, epoch.strip(), strips);
    else
      sums_of_rows(weights(l), of_w, columns, rows, next, epoch.m, out, epoch.strip(), strips);
  }

  // out(x, r) = Σ_c M(r, c) a(x, c).
  static void products_of_rows(const T* M, int rows, int columns, const T* const* a, ptrdiff_t next,
                               int m, T* out, ptrdiff_t strip, Range strips) {
    const int end = smaller(rows, strips.end * w);
    for (int r = strips.begin * w; r < end;) {
      const T* const from = M + ptrdiff_t(r) * columns;
      T* const to = out + r / w * strip + r % w;
      const int at_once = smaller(m == 1 ? 4 : 2, end - r);
      if (m == 1)
        with_count<4>(at_once, [&](auto n) { lanes<n.value, 1>(from, columns, a, next, to); });
      else
        in_tiles<3>(m, [&](int x, auto count) {
          with_count<2>(at_once, [&](auto n) {
            lanes<n.value, count.value>(from, columns, a + x, next, to + x * w);
          });
        });
      r += at_once;
    }
    for (int r = end; r < strips.end * w; ++r)
      for (ptrdiff_t x = 0; x < m; ++x) out[r / w * strip + x * w + r % w] = T(0);
  }

  // R rows of M by X of a.
  template <int R, int X>
  static __attribute__((noinline)) void lanes(const T* M, int columns, const T* const* a,
                                              ptrdiff_t next, T* out) {
    Strip<T> sum[X][R];
#pragma GCC unroll 4
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[x][r] = Strip<T>::zero();
    const int whole = columns / w * w;
    ptrdiff_t at = 0;
    for (int c = 0; c < whole; c += w, at += next) {
#pragma GCC unroll 4
      for (int i = 0; i < Strip<T>::count; ++i) {  // by registers: whole strips do not fit
        Register<T> row[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          row[r] = Strip<T>::load_register(M + ptrdiff_t(r) * columns + c + i * Strip<T>::lanes);
#pragma GCC unroll 4
        for (int x = 0; x < X; ++x) {
          const Register<T> value = Strip<T>::load_register(a[x] + at + i * Strip<T>::lanes);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) add_products(sum[x][r].r[i], value, row[r]);
        }
      }
    }
    if (const int rest = columns - whole) {
#pragma GCC unroll 4
      for (int x = 0; x < X; ++x) {
        const Strip<T> value = Strip<T>::load_part(a[x] + at, rest);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const T* const from = M + ptrdiff_t(r) * columns + whole;
          sum[x][r].add_product(value, Strip<T>::load_part(from, rest));
        }
      }
    }
#pragma GCC unroll 4
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        alignas(64) T lane[w];
        sum[x][r].store(lane);
        for (int distance = w / 2; distance > 0; distance /= 2)
          for (int c = 0; c < distance; ++c) lane[c] += lane[c + distance];
        out[x * w + r] = lane[0];
      }
  }

  // out(x, ·) = Σ_r v(x, r) M(r, ·).
  static void sums_of_rows(const T* M, int rows, int columns, const T* const* v, ptrdiff_t next,
                           int m, T* out, ptrdiff_t strip, Range strips) {
    const ptrdiff_t whole = smaller(strips.end, columns / w);
    for (ptrdiff_t s = strips.begin; s < whole;) {
      const int at_once = smaller(m == 1 ? 4 : 1, int(whole - s));
      T* const to = out + s * strip;
      if (m == 1)
        with_count<4>(at_once, [&](auto n) {
          add_up<n.value, 1, true>(M + s * w, rows, columns, w, v, next, to, strip);
        });
      else
        in_tiles<6>(m, [&](int x, auto n) {
          add_up<1, n.value, true>(M + s * w, rows, columns, w, v + x, next, to + x * w, strip);
        });
      s += at_once;
    }
    if (whole == strips.end) return;
    in_tiles<6>(m, [&](int x, auto n) {
      add_up<1, n.value, false>(M + whole * w, rows, columns, columns % w, v + x, next,
                                out + whole * strip + x * w, strip);
    });
  }

  // S strips, of `width` numbers unless they are whole, by X rows of v.
  template <int S, int X, bool WHOLE>
  static __attribute__((noinline)) void add_up(const T* M, int rows, ptrdiff_t columns, int width,
                                               const T* const* v, ptrdiff_t next, T* out,
                                               ptrdiff_t strip) {
    Strip<T> sum[X][S];
    const T* of[X];
#pragma GCC unroll 6
    for (int x = 0; x < X; ++x) {
      of[x] = v[x];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[x][s] = Strip<T>::zero();
    }
    const auto add = [&](ptrdiff_t at) __attribute__((always_inline)) {
      Strip<T> row[S];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s)
        row[s] = WHOLE ? Strip<T>::load_anywhere(M + s * w) : Strip<T>::load_part(M, width);
#pragma GCC unroll 6
      for (int x = 0; x < X; ++x) {
        const Strip<T> value(of[x][at]);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) sum[x][s].add_product(value, row[s]);
      }
      M += columns;
    };
    ptrdiff_t at = 0;
    for (int r = 0; r < rows; r += w, at += next) {
      const int end = smaller(w, rows - r);
#pragma GCC unroll 1
      for (int i = 0; i < end; ++i) add(at + i);
    }
#pragma GCC unroll 6
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[x][s].store(out + s * strip + x * w);
  }
};

}  // namespace
