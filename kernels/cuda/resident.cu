// An epoch of gradient descent in one launch. For every mini-batch in order:
//
//   forward   z^l = a^{l-1} w^lᵀ + b^l,  a^l = σ(z^l)
//   C, BP1    δ^L = ∇_a C ⊙ σ'(z^L)
//   BP2       δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l)
//   BP3, BP4  ∂C/∂b^l = mean of δ^l,  ∂C/∂w^l = δ^lᵀ a^{l-1} / m, and at once the update
//
//   X (n, n_0) of T or of bytes  Y (n, n_L)   of all members of a population
//   order, weights (members, n)  coefficients (members, steps, 6)  constants (members, 6)
//   parameters p, state s0, s1 (…, length), of which member i has row places[i]
//   costs (members, steps)
//
// A block is a network, or several blocks are: then each has a slice of the columns of w[1] and of
// X, and a copy of all other layers. Parameters, state, activations and errors lie in shared memory
// from the first step to the last (resident.cuh), and so do the next mini-batches, which arrive
// while the current one is computed.
//
// Where X is stored as bytes, they travel and wait as bytes. When their step comes they become T,
// in the one x that the products read.
//
// A step, a barrier after each line:
//   bytes to T  if so stored: a thread makes 16 bytes of x. The barrier after it is the block's,
//               in a cluster, too: a block reads no columns but its own. None is needed before it:
//               at the last one of the step before, the bytes were there and x was read
//   forward     a thread makes X × J of z^l over a slice of k, 16 bytes of a row at a time
//               a thread per element adds the slices, in order, and takes σ. Those of the first
//               layer are on several blocks. In a cluster, each adds all slices of some elements:
//               a thread that has made a part sends it there, one that has the sum sends it to all
//               (primitives/cluster.cuh). Blocks that are no cluster each add all, which they have
//               in letters (primitives/letters.cuh)
//   C, BP1      a thread per element; softmax 4 to 32 lanes per row
//   BP2         a thread makes XB × a run of δ^l, from the last layer to the first
//   BP3, BP4    a thread makes JU × a run of ∂C/∂w^l and changes that of w^l; all layers at once
//
// Every sum runs in one fixed order, so the same launch gives the same bits, whichever members
// are beside. The CPU's engine (kernels/cpu) adds in this order, too, and has the same bits as this
// file compiled by g++; on a card that has not run yet. For it a multiply-add is written out where it
// is meant, and the compiler makes none of its own (-fmad=false). Rows of a short last batch from m on
// hold what was there; δ is never read there.
//
// A loop that hands out pieces of work is not unrolled: a thread passes it once or a few times, and
// what is inside is long. Left to itself the compiler makes four of each, which take registers, the
// instruction cache, and twice the time to compile.
#include "formulas.cuh"
#include "primitives/async_copy.cuh"
#include "primitives/cluster.cuh"
#include "primitives/letters.cuh"
#include "primitives/warp.cuh"
#include "resident.cuh"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

template <int N, class T> __device__ __forceinline__ Run<T, N> run_at(const T* x) {
  return *reinterpret_cast<const Run<T, N>*>(x);
}
template <int N, class T> __device__ __forceinline__ void put_run(T* x, const Run<T, N>& values) {
  *reinterpret_cast<Run<T, N>*>(x) = values;
}

template <class T, class Stored, class Form, class Objective, class Rule, int INPUTS,
          class... Layers>
struct Epoch {
  static constexpr int BATCH = Form::batch, THREADS = Form::threads, WARPS = THREADS / 32;
  static constexpr int V = per_run<T>;
  static constexpr int rows_of_warp = units_of<BATCH, WARPS>;
  using Cost = typename Objective::Cost;
  using Shared = Memory<T, Stored, Form, 1 + Rule::slots, INPUTS, Layers...>;
  using Network = typename Shared::Network;
  static_assert(sizeof(Shared) == Form::bytes, "planning counts the same bytes");
  static_assert(THREADS % 32 == 0 && Form::stages > 1, "whole warps, and a stage to fetch into");

  Shared& shared;
  const Stored* X;
  const T* Y;
  const int* order;
  const T* weights;  // null where all are 1
  const unsigned* dropout;
  const double* coefficients;
  double* costs;
  const int rows, thread, warp, lane, rank;
  const int first_column, own_columns;  // of X and w[1], this block's
  const T clip_value, l1, d1, d2, epsilon;
  unsigned long long* const letters;  // of this network's blocks; and what the first step's number
  const unsigned first_letter;        // is, on them
  AsyncCopies copies;
  int row[rows_of_warp];  // of X, that this warp fetches next
  int number = 0, m = 0;  // of the step

  __device__ __forceinline__ Epoch(Shared& shared_memory, const Stored* X_, const T* Y_,
                                   const int* order_, const T* weights_,
                                   const unsigned* dropout_, const double* coefficients_, const T* constants, double* costs_, int rows_, int rank_,
                                   unsigned long long* letters_, unsigned first_letter_)
      : shared(shared_memory), X(X_), Y(Y_), order(order_), weights(weights_), dropout(dropout_),
        coefficients(coefficients_), costs(costs_), rows(rows_), thread(threadIdx.x), warp(threadIdx.x / 32),
        lane(threadIdx.x % 32), rank(rank_), first_column(rank_ * Shared::columns),
        own_columns(max(0, min(Shared::columns, INPUTS - first_column))),
        clip_value(constants[0]), l1(constants[1]), d1(constants[2]), d2(constants[3]),
        epsilon(constants[4]), letters(letters_), first_letter(first_letter_) {}

  __device__ __forceinline__ auto& stage() { return shared.stages[number % Form::stages]; }

  // ------------------------------------------------------------------ from and to device memory

  // WIDTH is a row's in device memory, which says how its start is aligned.
  template <int WIDTH, class N>
  __device__ __forceinline__ void copy_row(N* to, const N* from, int count) {
    constexpr int step = at_once<N, WIDTH>;
#pragma unroll 1
    for (int k = lane * step; k < count; k += 32 * step)
      copies.template copy<step * sizeof(N)>(to + k, from + k);
  }

  // Of X a block fetches its columns and, so that copies are aligned, some in front of them.
  __device__ __forceinline__ int before() {
    if constexpr (Shared::converts)
      return first_column % at_once<Stored, INPUTS>;
    else
      return 0;
  }
  __device__ __forceinline__ int fetched() {
    if constexpr (Shared::converts)
      return own_columns > 0 ? before() + own_columns : 0;
    else
      return own_columns;
  }

  // The mini-batch of a step sets out; the order of the one after is read, to be there next time.
  __device__ __forceinline__ void fetch(int step) {
    auto& into = shared.stages[step % Form::stages];
    const int begin = step * BATCH;
#pragma unroll
    for (int i = 0; i < rows_of_warp; ++i) {
      const int x = i * WARPS + warp;
      if (x >= BATCH) continue;
      if (begin + x < rows) {
        copy_row<INPUTS>(into.x[x], X + size_t(row[i]) * INPUTS + first_column - before(),
                         fetched());
        copy_row<Network::outputs>(into.y[x], Y + size_t(row[i]) * Network::outputs,
                                   Network::outputs);
        if (weights != nullptr && lane == 0)
          copies.template copy<sizeof(T)>(&into.weights[x], weights + begin + x);
      }
      if (begin + BATCH + x < rows) row[i] = order[begin + BATCH + x];
    }
    if (begin < rows && thread < 3)
      copies.template copy<16>(&into.coefficients[2 * thread],
                               coefficients + size_t(step) * 6 + 2 * thread);
    copies.commit();
  }

  // move(copy, in shared memory, in the flat array) for each parameter and its state. What all
  // blocks of a cluster have alike is left out unless `alike`.
  template <class Here, class Move>
  __device__ __forceinline__ void each_parameter(Here& here, size_t w, size_t b, bool alike,
                                                 Move move) {
    constexpr int n = Here::Layer::n;
    const int first = Here::split ? first_column : 0;
    const int own = Here::split ? own_columns : Here::fan_in;
#pragma unroll
    for (int copy = 0; copy < 1 + Rule::slots; ++copy) {
      if (Here::split || alike) {
#pragma unroll 1
        for (int j = warp; j < n; j += WARPS)
#pragma unroll 4
          for (int k = lane; k < own; k += 32)
            move(copy, here.w[copy][j][k], w + size_t(j) * Here::fan_in + first + k);
      }
      if (alike)
#pragma unroll 1
        for (int j = thread; j < n; j += THREADS) move(copy, here.b[copy][j], b + j);
    }
    if constexpr (!Here::last)
      each_parameter(here.next, w + Here::weights, b + Here::biases, alike, move);
  }

  // -------------------------------------------------------------------------- bytes to numbers

  // What fills up a row is 0 among the bytes, too.
  __device__ __forceinline__ void convert() {
    constexpr int runs = runs_of<T, Shared::columns>;
#pragma unroll 1
    for (int e = thread; e < m * runs; e += THREADS) {
      const int x = e / runs, k = e % runs * V;
      const Run<Stored, V> stored = run_at<V>(&stage().x[x][before() + k]);
      Run<T, V> numbers;
#pragma unroll
      for (int v = 0; v < V; ++v) numbers.x[v] = T(stored.x[v]);
      put_run(&shared.x[x][k], numbers);
    }
  }

  // The rows of this step.
  __device__ __forceinline__ auto& inputs() {
    if constexpr (Shared::converts)
      return shared.x;
    else
      return stage().x;
  }

  // -------------------------------------------------------------------------------- forward

  template <class Here>
  __device__ __forceinline__ void activate(Here& here, int x, int j, T product) {
    using Sigma = typename Here::Layer::Sigma;
    const T z = product + here.b[0][j];
    if constexpr (Here::last || Sigma::from_z) here.delta[x][j] = z;
    if constexpr (!Here::last) {
      const T a = Sigma::value(z);
      here.a[x][j] = Form::drops ? a * factor<Here>(x, j) : a;
    }
  }

  // What dropout makes of a hidden layer's number in this step.
  template <class Here> __device__ __forceinline__ T factor(int x, int j) {
    return Dropping{dropout, unsigned(number)}.template factor<T>(layer_of<Here>, x, j);
  }
  template <class Here>
  static constexpr int layer_of = Network::behind + 1 - Here::behind;

  // The letter for number `at` of a slice of this step. Two for each, in turn, are enough: a block
  // writes the next but one when it has those of the next, so that all have read this one.
  template <class Here> __device__ __forceinline__ unsigned long long* letter(int slice, int at) {
    using L = typename Here::Layer;
    const int place = (number % 2 * L::slices + slice) * (BATCH * L::n) + at;
    return letters + size_t(place) * words_of<T>;
  }

  template <int COUNT> static __device__ __forceinline__ T sum_of(const T (&part)[COUNT]) {
    T sum = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum += part[i];
    return sum;
  }

  // In a cluster, block `at` % blocks adds the slices of number `at` of z[1]: so many of them.
  __device__ __forceinline__ int numbers_here(int count) {
    return (count - rank + Form::blocks - 1) / Form::blocks;
  }

  // Two buffers for parts and one for sums are enough: a block sends the parts of the next step but
  // one when it has all sums of the next, which no thread of a block sends before all are done with
  // this step's parts; and sums of the next step when it has all its parts, which come from blocks
  // that are done with this step's sums.
  template <int SLICES, int COUNT> __device__ __forceinline__ void expect_parts() {
    if (thread != 0) return;
    shared.exchange.parts_here.expect(numbers_here(COUNT) * SLICES * int(sizeof(T)));
    shared.exchange.sums_here.expect(COUNT * int(sizeof(T)));
  }

  __device__ __forceinline__ void send_part(int slice, int at, T part) {
    auto& exchange = shared.exchange;
    T* place = &exchange.parts[number % 2][slice][at / Form::blocks];
    send(place, part, exchange.parts_here, at % Form::blocks);
  }

  template <int SLICES, int COUNT> __device__ __forceinline__ void add_parts() {
    auto& exchange = shared.exchange;
    exchange.parts_here.wait(number);
    // A thread a sum and a block that gets it: to add again costs less than to tell each other.
#pragma unroll 1
    for (int e = thread; e < numbers_here(COUNT) * Form::blocks; e += THREADS) {
      const int mine = e / Form::blocks, to = e % Form::blocks;
      T part[SLICES];
#pragma unroll
      for (int slice = 0; slice < SLICES; ++slice)
        part[slice] = exchange.parts[number % 2][slice][mine];
      send(&exchange.sums[mine * Form::blocks + rank], sum_of(part), exchange.sums_here, to);
    }
    exchange.sums_here.wait(number);
  }

  // The slices are the network's and not the form's, and so are the bits of z: each of several
  // blocks has some of them.
  template <class Here, int S>
  __device__ __forceinline__ void forward(const T (&a_prev)[BATCH][S], Here& here) {
    using L = typename Here::Layer;
    constexpr int x_tiles = units_of<BATCH, L::x>, j_tiles = units_of<L::n, L::j>;
    constexpr int tiles = x_tiles * j_tiles, outputs = BATCH * L::n;
    constexpr int blocks = Here::split ? Form::blocks : 1, slices = L::slices / blocks;
    constexpr bool writes = Here::split && Form::apart, sends = Here::split && Form::cluster;
    constexpr int runs = runs_of<T, Here::columns>, share = units_of<runs, slices>;
    if constexpr (sends) expect_parts<L::slices, outputs>();
    T* parts = shared.parts;
    if constexpr (writes) parts = shared.exchange.parts;
#pragma unroll 1
    for (int unit = thread; unit < tiles * slices; unit += THREADS) {
      // Rows and columns of a tile lie a number of tiles apart: neighbours read neighbours.
      const int slice = unit / tiles, x = unit % tiles / j_tiles, j = unit % j_tiles;
      const int end = min(runs, slice * share + share);
      T sum[L::x][L::j] = {};
#pragma unroll 2
      for (int run = slice * share; run < end; ++run) {
        Run<T, V> a[L::x], w[L::j];
#pragma unroll
        for (int p = 0; p < L::x; ++p)
          a[p] = run_at<V>(&a_prev[min(x + p * x_tiles, BATCH - 1)][run * V]);
#pragma unroll
        for (int q = 0; q < L::j; ++q)
          w[q] = run_at<V>(&here.w[0][min(j + q * j_tiles, L::n - 1)][run * V]);
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
          for (int p = 0; p < L::x; ++p)
#pragma unroll
            for (int q = 0; q < L::j; ++q) sum[p][q] = fused(a[p].x[v], w[q].x[v], sum[p][q]);
      }
#pragma unroll
      for (int p = 0; p < L::x; ++p) {
#pragma unroll
        for (int q = 0; q < L::j; ++q) {
          const int row_x = x + p * x_tiles, row_j = j + q * j_tiles;
          if (row_x >= BATCH || row_j >= L::n) continue;
          const int at = row_x * L::n + row_j;
          if constexpr (writes)
            send(letter<Here>(rank * slices + slice, at), sum[p][q], first_letter + number);
          if constexpr (sends)
            send_part(rank * slices + slice, at, sum[p][q]);
          else if constexpr (L::slices > 1)
            parts[slice * outputs + at] = sum[p][q];
          else
            activate(here, row_x, row_j, sum[p][q]);
        }
      }
    }
    if constexpr (sends) {
      add_parts<L::slices, outputs>();
#pragma unroll 1
      for (int e = thread; e < outputs; e += THREADS)
        activate(here, e / L::n, e % L::n, shared.exchange.sums[e]);
    } else if constexpr (L::slices > 1) {
      __syncthreads();
#pragma unroll 1
      for (int e = thread; e < outputs; e += THREADS) {
        T part[L::slices];
        if constexpr (writes) {
          receive<slices>(part, letter<Here>(0, e), parts + e, outputs, rank,
                          first_letter + number);
        } else {
#pragma unroll
          for (int slice = 0; slice < L::slices; ++slice) part[slice] = parts[slice * outputs + e];
        }
        activate(here, e / L::n, e % L::n, sum_of(part));
      }
    }
  }

  // ------------------------------------------------------------------------------ C and BP1

  __device__ __forceinline__ T weight_of(int x) {
    return weights == nullptr ? T(1) : stage().weights[x];
  }

  template <class Here> __device__ __forceinline__ void output_error(Here& here) {
    using Sigma = typename Here::Layer::Sigma;
    constexpr int n = Here::Layer::n;
    if constexpr (by_row<Objective, Sigma>) {
      constexpr int lanes = lanes_of<n>, at_once = 32 / lanes;  // rows of a warp
#pragma unroll 1
      for (int first = warp * at_once; first < m; first += WARPS * at_once) {
        const bool inside = first + lane / lanes < m;  // the others take part in a warp's sums
        const int x = inside ? first + lane / lanes : first;
        const T weight = weight_of(x);
        const auto row = row_in_memory<lanes>(here.delta[x], stage().y[x], n, lane % lanes, inside,
                                              [&](int j, Output<T> output) {
                                                here.a[x][j] = output.term * weight;
                                                here.delta[x][j] = output.error * weight;
                                              });
        outputs_of_row<Objective, Sigma, T>(row);
      }
    } else if constexpr (Cost::pairs) {
#pragma unroll 1
      for (int e = thread; e < m * (n / 2); e += THREADS) {
        const int x = e / (n / 2), j = e % (n / 2), other = j + n / 2;
        auto& delta = here.delta[x];
        const auto pair = pair_of_outputs<Objective, Sigma>(delta[j], delta[other], stage().y[x][j]);
        const T weight = weight_of(x);
        here.a[x][j] = pair.term * weight;
        here.a[x][other] = 0;
        delta[j] = pair.of_first * weight;
        delta[other] = pair.of_second * weight;
      }
    } else {
#pragma unroll 1
      for (int e = thread; e < m * n; e += THREADS) {
        const int x = e / n, j = e % n;
        const auto [term, error] =
            output_of<Objective, Sigma>(here.delta[x][j], stage().y[x][j], j);
        const T weight = weight_of(x);
        here.a[x][j] = term * weight;
        here.delta[x][j] = error * weight;
      }
    }
  }

  // By the last warp, while the others go on.
  template <class Here> __device__ __forceinline__ void record_cost(Here& here) {
    constexpr int n = Here::Layer::n;
    if (warp != WARPS - 1 || rank != 0) return;
    double sum = 0;
#pragma unroll 1
    for (int e = lane; e < m * n; e += 32) sum += double(here.a[e / n][e % n]);
    sum = warp_sum(sum);
    if (lane == 0) costs[number] = sum / m;
  }

  // ------------------------------------------------------------------------------------ BP2

  template <class Here> __device__ __forceinline__ void hidden_error(Here& here) {
    using L = typename Here::Layer;
    using Sigma = typename L::Sigma;
    auto& next = here.next;
    constexpr int runs = runs_of<T, L::n>, x_tiles = units_of<BATCH, L::xb>;
#pragma unroll 1
    for (int tile = thread; tile < x_tiles * runs; tile += THREADS) {
      const int x = tile / runs, k = tile % runs * V;
      T sum[L::xb][V] = {};
#pragma unroll 4
      for (int j = 0; j < Here::Next::Layer::n; ++j) {
        const Run<T, V> w = run_at<V>(&next.w[0][j][k]);
#pragma unroll
        for (int i = 0; i < L::xb; ++i) {
          const T delta = next.delta[min(x + i * x_tiles, BATCH - 1)][j];
#pragma unroll
          for (int v = 0; v < V; ++v) sum[i][v] = fused(delta, w.x[v], sum[i][v]);
        }
      }
#pragma unroll
      for (int i = 0; i < L::xb; ++i)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int row_x = x + i * x_tiles;
          if (row_x >= BATCH) continue;
          T saved = Sigma::from_z ? here.delta[row_x][k + v] : here.a[row_x][k + v];
          T delta = sum[i][v];
          if constexpr (Form::drops) {
            if (!Sigma::from_z) saved *= T(Dropping{dropout, 0}.kept(layer_of<Here>));
            delta *= factor<Here>(row_x, k + v);
          }
          here.delta[row_x][k + v] = delta * Sigma::derivative(saved);
        }
    }
  }

  // -------------------------------------------------------------------- BP3, BP4 and the update

  // A run of p, its state and its gradient, C's own.
  template <int N>
  __device__ __forceinline__ void change(T* p, T* s0, T* s1, Run<T, N> g, const T* c, bool weight) {
    Run<T, N> old = run_at<N>(p), state0 = {}, state1 = {};
    if constexpr (Rule::slots > 0) state0 = run_at<N>(s0);
    if constexpr (Rule::slots > 1) state1 = run_at<N>(s1);
    // The same for all threads, and most often none of it is asked for.
    const T l2 = c[4];
    if (clip_value <= largest<T>() || l1 != T(0) || l2 != T(0)) {
#pragma unroll
      for (int v = 0; v < N; ++v) {
        g.x[v] = clip_by_value(g.x[v], clip_value);
        if (weight) g.x[v] = penalized(g.x[v], old.x[v], l1, l2);
      }
    }
#pragma unroll
    for (int v = 0; v < N; ++v)
      old.x[v] = Rule::apply(old.x[v], g.x[v], state0.x[v], state1.x[v], c, d1, d2, epsilon,
                             weight);
    put_run(p, old);
    if constexpr (Rule::slots > 0) put_run(s0, state0);
    if constexpr (Rule::slots > 1) put_run(s1, state1);
  }

  template <class Here, int S>
  __device__ __forceinline__ void update(const T (&a_prev)[BATCH][S], Here& here, const T* c) {
    using L = typename Here::Layer;
    constexpr int runs = runs_of<T, Here::columns>, j_tiles = units_of<L::n, L::ju>;
    constexpr int D = L::ju < V ? L::ju : V;  // errors read at once
    constexpr int slot0 = Rule::slots > 0 ? 1 : 0, slot1 = Rule::slots > 1 ? 2 : 0;
    const T share = T(1) / T(m);
#pragma unroll 1
    for (int tile = thread; tile < j_tiles * runs; tile += THREADS) {
      const int j = tile / runs * L::ju, k = tile % runs * V;
      T sum[L::ju][V] = {};
#pragma unroll 2
      for (int x = 0; x < m; ++x) {
        const Run<T, V> a = run_at<V>(&a_prev[x][k]);
#pragma unroll
        for (int i = 0; i < L::ju; i += D) {
          const Run<T, D> delta = run_at<D>(&here.delta[x][j + i]);
#pragma unroll
          for (int d = 0; d < D; ++d)
#pragma unroll
            for (int v = 0; v < V; ++v)
              sum[i + d][v] = fused(delta.x[d], a.x[v], sum[i + d][v]);
        }
      }
#pragma unroll
      for (int i = 0; i < L::ju; ++i) {
        if (j + i >= L::n) continue;
        Run<T, V> gradient;
#pragma unroll
        for (int v = 0; v < V; ++v) gradient.x[v] = sum[i][v] * share;
        change(&here.w[0][j + i][k], &here.w[slot0][j + i][k], &here.w[slot1][j + i][k], gradient,
               c, true);
      }
    }
    // From the other end: these threads have fewer tiles.
#pragma unroll 1
    for (int j = THREADS - 1 - thread; j < L::n; j += THREADS) {
      T sum = 0;
#pragma unroll 4
      for (int x = 0; x < m; ++x) sum += here.delta[x][j];
      change(&here.b[0][j], &here.b[slot0][j], &here.b[slot1][j], Run<T, 1>{{sum * share}}, c,
             false);
    }
    if constexpr (!Here::last) update(here.a, here.next, c);
  }

  // ------------------------------------------------------------------------------- the epoch

  // Forward through a layer and all behind it, and back.
  template <class Here, int S>
  __device__ __forceinline__ void pass(const T (&a_prev)[BATCH][S], Here& here) {
    forward(a_prev, here);
    __syncthreads();
    if constexpr (Here::last) {
      output_error(here);
      __syncthreads();
      record_cost(here);
    } else {
      pass(here.a, here.next);
      hidden_error(here);
      __syncthreads();
    }
  }

  // The network is the one at `begin` in p and in the state.
  __device__ __forceinline__ void run(T* p, T* s0, T* s1, size_t begin) {
    T* const arrays[] = {p, s0, s1};
    T* all = reinterpret_cast<T*>(dynamic_shared);
#pragma unroll 1
    for (int e = thread; e < int(sizeof(Shared) / sizeof(T)); e += THREADS) all[e] = T(0);
    __syncthreads();
    if constexpr (Form::cluster) {
      if (thread == 0) {
        shared.exchange.parts_here.init();
        shared.exchange.sums_here.init();
      }
      cluster_barrier();
    }
    each_parameter(shared.network, begin, begin + Network::all_weights, true,
                   [&](int copy, T& inside, size_t at) { inside = arrays[copy][at]; });
#pragma unroll
    for (int i = 0; i < rows_of_warp; ++i)
      row[i] = i * WARPS + warp < rows ? order[i * WARPS + warp] : 0;
#pragma unroll 1
    for (int ahead = 0; ahead < Form::stages - 1; ++ahead) fetch(ahead);
    copies.template wait<Form::stages - 2>();
    __syncthreads();
#pragma unroll 1
    for (; number * BATCH < rows; ++number) {
      fetch(number + Form::stages - 1);
      m = min(BATCH, rows - number * BATCH);
      if constexpr (Shared::converts) {
        convert();
        __syncthreads();
      }
      pass(inputs(), shared.network);
      T c[5];
#pragma unroll
      for (int i = 0; i < 5; ++i) c[i] = T(stage().coefficients[i]);
      update(inputs(), shared.network, c);
      copies.template wait<Form::stages - 2>();
      __syncthreads();
    }
    each_parameter(shared.network, begin, begin + Network::all_weights, rank == 0,
                   [&](int copy, T& inside, size_t at) { arrays[copy][at] = inside; });
  }
};

template <class T, class Stored, class Form, class Objective, class Rule, int INPUTS,
          class... Layers>
__device__ __forceinline__ void train(const Stored* X, const T* Y, const int* order,
                                      const T* weights, const unsigned* dropout,
                                      const double* coefficients,
                                      const T* constants, const int* places, T* p, T* s0, T* s1, double* costs,
                                      int rows, int rank, int first = 0,
                                      unsigned long long* letters = nullptr) {
  using Training = Epoch<T, Stored, Form, Objective, Rule, INPUTS, Layers...>;
  const size_t place = blockIdx.x / Form::blocks, member = first + place;
  const size_t steps = (rows + Form::batch - 1) / Form::batch;
  const size_t length = Training::Network::all_weights + Training::Network::all_biases;
  const size_t at = places[member] * length;
  constexpr size_t written = 2 * Training::Shared::all_slices * words_of<T>;
  auto& shared = *reinterpret_cast<typename Training::Shared*>(dynamic_shared);
  Training epoch(shared, X, Y, order + member * rows,
                 weights == nullptr ? nullptr : weights + member * rows,
                 Form::drops ? dropout + member * (3 + Training::Network::behind) : nullptr,
                 coefficients + member * steps * 6, constants + member * 6, costs + member * steps, rows, rank,
                 letters + place * written, unsigned(first * steps) + 1);
  epoch.run(p, s0, s1, at);
}

// Grid (members). X is of T, or of bytes that mean 0 … 255; `constants` are clip_value, infinite
// where there is none, l1, the rule's and one that is not read; `dropout` (members, 3 + hidden layers)
// are as `Dropping` has them. It may be null, as weights may, and s0 and s1 where the rule has no such
// state.
template <class T, class Stored, class Form, class Objective, class Rule, int INPUTS,
          class... Layers>
__global__ void __launch_bounds__(Form::threads, 1)
    resident(const Stored* X, const T* Y, const int* order, const T* weights,
             const unsigned* dropout, const double* coefficients, const T* constants, const int* places, T* p, T* s0, T* s1, double* costs, int rows) {
  train<T, Stored, Form, Objective, Rule, INPUTS, Layers...>(
      X, Y, order, weights, dropout, coefficients, constants, places, p, s0, s1, costs, rows, 0);
}

// Grid (members · BLOCKS).
template <class T, class Stored, class Form, class Objective, class Rule, int INPUTS,
          class... Layers>
__global__ void __launch_bounds__(Form::threads, 1) CLUSTER_OF(Form::blocks)
    resident_cluster(const Stored* X, const T* Y, const int* order, const T* weights,
                     const unsigned* dropout, const double* coefficients, const T* constants, const int* places, T* p, T* s0, T* s1, double* costs,
                     int rows) {
  train<T, Stored, Form, Objective, Rule, INPUTS, Layers...>(
      X, Y, order, weights, dropout, coefficients, constants, places, p, s0, s1, costs, rows, cluster_rank());
}

// Grid (members from `first` on, as many as run at once, · BLOCKS), a cooperative launch. `letters`
// (members of the grid, 2, slices, m · n_1) are 0 before the first of an epoch's launches.
template <class T, class Stored, class Form, class Objective, class Rule, int INPUTS,
          class... Layers>
__global__ void __launch_bounds__(Form::threads, 1)
    resident_apart(const Stored* X, const T* Y, const int* order, const T* weights,
                   const unsigned* dropout, const double* coefficients, const T* constants, const int* places, T* p, T* s0, T* s1, double* costs,
                   int rows, int first, unsigned long long* letters) {
  train<T, Stored, Form, Objective, Rule, INPUTS, Layers...>(
      X, Y, order, weights, dropout, coefficients, constants, places, p, s0, s1, costs, rows,
      blockIdx.x % Form::blocks, first, letters);
}
