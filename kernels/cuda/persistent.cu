// An epoch of gradient descent in one launch, its blocks all at work on each step. For every
// mini-batch in order:
//
//   forward   z^l = a^{l-1} w^lᵀ + b^l,  a^l = σ(z^l)
//   C, BP1    δ^L = ∇_a C ⊙ σ'(z^L)
//   BP2       δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l)
//   BP3, BP4  ∂C/∂b^l = mean of δ^l,  ∂C/∂w^l = δ^lᵀ a^{l-1} / m, and at once the update
//
//   X (n, n_0) of float or of bytes  Y (n, n_L)   of all members of a population
//   order, weights (members, n)  coefficients (members, steps, 6)  constants (members, 6)
//   parameters p, state s0, s1 (…, length), of which member i has row places[i]
//   scratch (members of the launch, …): x twice, and a, z, δ of each layer, where `layers` says
//   row_costs (members of the launch, batch)  costs (members, steps)
//
// Tiling. A phase is the tiles of one product, of all members: block b takes every gridDim-th from b
// on, by tensor_gemm.cuh with its warps sharing the steps of the sum, and the next phase begins behind
// a barrier of the grid. Parameters, activations and errors are in device memory, which at this size
// is the L2 cache; sizes are no template arguments, and a network's depth adds no code.
//
// A step, a barrier of the grid after each line:
//   forward of layer 1; whom it leaves idle brings the next step's rows, as floats
//   forward of each other hidden layer
//   z^L and, by the block that has made them, C and BP1 of its rows (where n_L is wider than a tile,
//   behind a barrier of their own)
//   BP2 of each hidden layer, from the last to the first
//   BP3, BP4 and the update of all layers; C
//   norms of the rows of all w, a warp a row, where any member's have a limit
//
// Time, [784, 128, 128, 10], 128 rows, 3×TF32, 132 multiprocessors of an H100. A phase waits for its
// first slices (600 cycles), reads and writes what its epilogue needs (500) and meets (1600): six are
// 16k cycles. In between: forward of layer 1, 64 tiles of 16 × 16, 6.4 MB from the L2 cache at 2600
// bytes a cycle, 2.5k; the update, 120 tiles of 32 × 32, 1.5k; the others 0.4k each; rows 0.5k. In all
// 22k cycles, 11 µs; the tensor cores are busy for 2k of them.
//
// Every sum has one order, so the same launch gives the same bits, whatever its blocks and whichever
// members are beside.
#include "activations.cuh"
#include "costs.cuh"
#include "network.cuh"
#include "norms.cuh"
#include "philox.cuh"
#include "primitives/grid.cuh"
#include "primitives/warp.cuh"
#include "rules.cuh"
#include "run.cuh"
#include "tensor_gemm.cuh"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

// Layer 0 is x. n neurons, of which the `sigma`-th of the hidden σ gives a; rows are `stride` numbers
// apart, a multiple of 4. w and b are where they begin in the parameters' flat array, the others in a
// member's scratch.
struct PersistentLayer {
  long long n, stride, sigma, w, b, a, z, delta;
};
constexpr int most_layers = 64;  // planning has the same number, as MOST_LAYERS

// EXTENT × EXTENT by eight warps, 16 KB a slice: warps that have the same part share
// the steps of its sum.
template <int EXTENT, class Factors>
using SquareTile = TensorTile<EXTENT, EXTENT, 2048 / EXTENT, EXTENT == 64 ? 32 : 16,
                              EXTENT == 16 ? 16 : 32, Factors,
                              EXTENT == 64 ? 2 : EXTENT == 32 ? 4 : 8, 4>;

// FORWARD, ERROR, GRADIENT: the tiles' extents in forward, BP2 and BP4; bytes of shared memory.
// DROPS: hidden activations are dropped out.
template <class FACTORS, int FORWARD, int ERROR, int GRADIENT, int BYTES, bool DROPS = false>
struct PersistentForm {
  static constexpr bool drops = DROPS;
  using Forward = SquareTile<FORWARD, FACTORS>;
  using Error = SquareTile<ERROR, FACTORS>;
  using Gradient = SquareTile<GRADIENT, FACTORS>;
  static constexpr int threads = Forward::threads, bytes = BYTES;
  static_assert(Error::threads == threads && Gradient::threads == threads, "one size of blocks");
};

// σ_index(z), or what else `of` makes of a type of σ.
template <class... Sigmas, class Of> __device__ __forceinline__ float by_sigma(int index, Of of) {
  float found = 0;
  int i = 0;
  ((i++ == index ? void(found = of(Sigmas{})) : void()), ...);
  return found;
}

template <class Stored, class Form, class Objective, class Rule, class Last, class... Hidden>
struct PersistentEpoch {
  static constexpr int THREADS = Form::threads;
  static constexpr Contiguous by_p = Contiguous::p, by_result = Contiguous::result;
  using Cost = typename Objective::Cost;
  using Forward = typename Form::Forward;
  using Error = typename Form::Error;
  using Gradient = typename Form::Gradient;
  union Shared {
    TensorSlicesOf<Forward, by_p, by_p> forward;
    TensorSlicesOf<Error, by_p, by_result> error;
    TensorSlicesOf<Gradient, by_result, by_result> gradient;
  };
  static_assert(sizeof(Shared) == Form::bytes, "planning counts the same bytes");
  static constexpr int lanes = 16;  // that a row of outputs has

  struct Member {
    const int* order;
    const float* weights;
    const unsigned* dropout;
    const double* coefficients;
    const float* constants;
    size_t at;  // of its parameters
    float* scratch;
    double *row_costs, *costs;
  };

  const Stored* X;
  const float* Y;
  const int* order;
  const float* weights;  // null where all are 1
  const unsigned* dropout;
  const double* coefficients;
  const float* constants;
  const int* places;
  float *p, *s0, *s1, *scratch;
  double *row_costs, *costs;
  unsigned* arrived;
  size_t length, scratch_length;
  int rows, batch, members, first, last;  // the last layer
  bool limits;                            // whether any member's norms have a limit

  const PersistentLayer* layers;  // in shared memory
  int steps, thread, warp, lane, m, step;
  unsigned met;

  __device__ __forceinline__ void meet() { grid_barrier(arrived, ++met); }

  __device__ __forceinline__ Member member(int here) const {
    const size_t number = first + here;
    return {order + number * rows,
            weights == nullptr ? nullptr : weights + number * rows,
            Form::drops ? dropout + number * (2 + last) : nullptr,
            coefficients + number * steps * 6,
            constants + number * 6,
            places[number] * length,
            scratch + here * scratch_length,
            row_costs + size_t(here) * batch,
            costs + number * steps};
  }

  // x of a step: of two in turn.
  __device__ __forceinline__ size_t rows_at(int of_step) const {
    return of_step % 2 * size_t(batch) * layers[0].stride;
  }
  __device__ __forceinline__ const float* activations(const Member& of, int l) const {
    return of.scratch + (l == 0 ? rows_at(step) : size_t(layers[l].a));
  }

  // each(member, tile) for this block's of so many tiles a member.
  template <class Each> __device__ __forceinline__ void each_tile(int tiles, Each each) {
#pragma unroll 1
    for (int item = blockIdx.x; item < tiles * members; item += gridDim.x) {
      each(member(item / tiles), item % tiles);
      __syncthreads();  // shared memory has been read
    }
  }

  static __device__ __forceinline__ int tiles_of(int count, int extent) {
    return (count + extent - 1) / extent;
  }

  // ---------------------------------------------------------------------------------- the rows

  // Those of a step, by the blocks from `begin` on, a warp each.
  __device__ __forceinline__ void bring_rows(int of_step, int begin) {
    const int n = layers[0].n, stride = layers[0].stride;
    const int count = min(batch, rows - of_step * batch), blocks = gridDim.x - begin;
    if (int(blockIdx.x) < begin) return;
#pragma unroll 1
    for (int i = warp * blocks + blockIdx.x - begin; i < count * members;
         i += blocks * (THREADS / 32)) {
      const Member of = member(i / count);
      const Stored* from = X + size_t(of.order[of_step * batch + i % count]) * n;
      float* to = of.scratch + rows_at(of_step) + size_t(i % count) * stride;
      if (n % 4 == 0) {
#pragma unroll 4
        for (int k = lane * 4; k < n; k += 128) {
          const auto run = *reinterpret_cast<const Run<Stored, 4>*>(from + k);
          *reinterpret_cast<Run<float, 4>*>(to + k) = {
              {float(run.x[0]), float(run.x[1]), float(run.x[2]), float(run.x[3])}};
        }
      } else {
#pragma unroll 4
        for (int k = lane; k < n; k += 32) to[k] = float(from[k]);
      }
    }
  }

  // ----------------------------------------------------------------------------------- forward

  // z^l and, of a hidden layer, a^l. done(member, row) when a tile from that row on is there for all
  // threads of the block.
  template <class Put, class Done>
  __device__ __forceinline__ void forward(Shared& shared, int l, Put put, Done done) {
    const PersistentLayer prev = layers[l - 1], here = layers[l];
    const int across = tiles_of(here.n, Forward::BN);
    each_tile(tiles_of(m, Forward::BM) * across, [&](const Member& of, int tile) {
      const int row = tile / across * Forward::BM;
      const float *w = p + of.at + here.w, *b = p + of.at + here.b;
      tensor_tile<Forward, by_p, by_p>(
          shared.forward, activations(of, l - 1), w, row, tile % across * Forward::BN, m, here.n, 0,
          prev.n, prev.stride, prev.n, [=](int, int j) { return b[j]; },
          [&](int x, int j, float product, float bias) {
            put(of, x, j, product + bias);
          },
          Nothing{});
      done(of, row);
    });
  }

  // What dropout makes of a number of layer l in this step.
  __device__ __forceinline__ float factor(const Member& of, int l, int x, int j) const {
    return Dropping{of.dropout, unsigned(step)}.factor<float>(l, x, j);
  }

  __device__ __forceinline__ void hidden_layer(Shared& shared, int l) {
    if constexpr (sizeof...(Hidden) > 0) {
      const PersistentLayer here = layers[l];
      forward(
          shared, l,
          [&](const Member& of, int x, int j, float z) {
            float* const arrays = of.scratch;
            const size_t at = size_t(x) * here.stride + j;
            const float a = by_sigma<Hidden...>(here.sigma, [&](auto sigma) {
              if constexpr (decltype(sigma)::from_z) arrays[here.z + at] = z;
              return decltype(sigma)::value(z);
            });
            arrays[here.a + at] = Form::drops ? a * factor(of, l, x, j) : a;
          },
          [](const Member&, int) {});
    }
  }

  __device__ __forceinline__ void last_layer(Shared& shared) {
    const PersistentLayer here = layers[last];
    const bool apart = here.n > Forward::BN;
    forward(
        shared, last,
        [&](const Member& of, int x, int j, float z) {
          of.scratch[here.z + size_t(x) * here.stride + j] = z;
        },
        [&](const Member& of, int row) {
          __syncthreads();
          if (!apart) output_errors(of, row);
        });
    if (!apart) return;
    meet();
    each_tile(tiles_of(m, Forward::BM),
              [&](const Member& of, int tile) { output_errors(of, tile * Forward::BM); });
  }

  // -------------------------------------------------------------------------------- C and BP1

  // Of the rows of a tile, 16 lanes each.
  __device__ __forceinline__ void output_errors(const Member& of, int begin) {
    const PersistentLayer here = layers[last];
    const int n = here.n, own = thread % lanes;
#pragma unroll 1
    for (int i = thread / lanes; i < Forward::BM; i += THREADS / lanes) {
      const int row = begin + i;
      const bool inside = row < m;  // the other half of the warp takes part in its sums
      const int x = inside ? row : begin;
      const float* z = of.scratch + here.z + size_t(x) * here.stride;
      const float* y = Y + size_t(of.order[step * batch + x]) * n;
      float* delta = of.scratch + here.delta + size_t(x) * here.stride;
      const float weight = weights == nullptr ? 1.0f : of.weights[step * batch + x];
      const double cost = warp_sum<lanes>(double(row_error(z, y, delta, weight, n, own, inside)));
      if (inside && own == 0) of.row_costs[x] = cost;
    }
  }

  // A lane's part of c.
  __device__ __forceinline__ float row_error(const float* z, const float* y, float* delta,
                                             float weight, int n, int own, bool inside) {
    float cost = 0;
    const auto take = [&](int j, Output<float> output) {
      cost += output.term * weight;
      delta[j] = output.error * weight;
    };
    if constexpr (by_row<Objective, Last>) {
      const auto row = row_in_memory<lanes>(z, y, n, own, inside, take);
      outputs_of_row<Objective, Last, float>(row);
    } else if constexpr (Cost::pairs) {
#pragma unroll 1
      for (int j = own; inside && j < n / 2; j += lanes) {
        const auto pair = pair_of_outputs<Objective, Last>(z[j], z[j + n / 2], y[j]);
        take(j, {pair.term, pair.of_first});
        take(j + n / 2, {0, pair.of_second});
      }
    } else {
#pragma unroll 1
      for (int j = own; inside && j < n; j += lanes)
        take(j, output_of<Objective, Last>(z[j], y[j], j));
    }
    return cost;
  }

  // ------------------------------------------------------------------------------------ BP2

  __device__ __forceinline__ void hidden_error(Shared& shared, int l) {
    if constexpr (sizeof...(Hidden) > 0) {
      const PersistentLayer here = layers[l], next = layers[l + 1];
      const int across = tiles_of(here.n, Error::BN);
      each_tile(tiles_of(m, Error::BM) * across, [&](const Member& of, int tile) {
        float* arrays = of.scratch;
        tensor_tile<Error, by_p, by_result>(
            shared.error, arrays + next.delta, p + of.at + next.w, tile / across * Error::BM,
            tile % across * Error::BN, m, here.n, 0, next.n, next.stride, here.n,
            [=](int x, int j) {
              const size_t at = size_t(x) * here.stride + j;
              const float rest = Form::drops ? float(Dropping{of.dropout, 0}.kept(l)) : 1.0f;
              return by_sigma<Hidden...>(here.sigma, [&](auto sigma) {
                return decltype(sigma)::from_z ? arrays[here.z + at] : arrays[here.a + at] * rest;
              });
            },
            [=](int x, int j, float product, float saved) {
              const float slope = by_sigma<Hidden...>(
                  here.sigma, [&](auto sigma) { return decltype(sigma)::derivative(saved); });
              const float kept = Form::drops ? product * factor(of, l, x, j) : product;
              arrays[here.delta + size_t(x) * here.stride + j] = kept * slope;
            },
            Nothing{});
      });
    }
  }

  // -------------------------------------------------------------------- BP3, BP4 and the update

  struct Parameter {
    float value, state0, state1;
  };

  __device__ __forceinline__ Parameter parameter(size_t at) const {
    return {p[at], Rule::slots > 0 ? s0[at] : 0, Rule::slots > 1 ? s1[at] : 0};
  }

  // By its gradient, C's own.
  __device__ __forceinline__ void change(const Member& of, size_t at, Parameter old, float g,
                                         const float (&c)[5], bool weight) const {
    const float* k = of.constants;
    g = clip_by_value(g, k[0]);
    if (weight) g = penalized(g, old.value, k[1], c[4]);
    p[at] = Rule::apply(old.value, g, old.state0, old.state1, c, k[2], k[3], k[4], weight);
    if constexpr (Rule::slots > 0) s0[at] = old.state0;
    if constexpr (Rule::slots > 1) s1[at] = old.state1;
  }

  __device__ __forceinline__ int weight_tiles(int l) const {
    return tiles_of(layers[l].n, Gradient::BM) * tiles_of(layers[l - 1].n, Gradient::BN);
  }

  __device__ __forceinline__ void update(Shared& shared) {
    int tiles = 0;
    for (int l = 1; l <= last; ++l) tiles += weight_tiles(l);
    each_tile(tiles + 1, [&](const Member& of, int tile) {
      if (tile == tiles) return record_cost(of);
      int l = 1;
      for (; tile >= weight_tiles(l); ++l) tile -= weight_tiles(l);
      layer_update(shared, of, l, tile);
    });
  }

  __device__ __forceinline__ void layer_update(Shared& shared, const Member& of, int l, int tile) {
    constexpr int share = THREADS / Gradient::BM;  // threads that see a column of δ
    __shared__ float sums[share][Gradient::BM];
    const PersistentLayer prev = layers[l - 1], here = layers[l];
    const int across = tiles_of(prev.n, Gradient::BN);
    const int row = tile / across * Gradient::BM, column = tile % across * Gradient::BN;
    const size_t w = of.at + here.w;
    const float mean = 1.0f / float(m);
    float c[5], sum = 0;
#pragma unroll
    for (int i = 0; i < 5; ++i) c[i] = float(of.coefficients[size_t(step) * 6 + i]);
    tensor_tile<Gradient, by_result, by_result>(
        shared.gradient, of.scratch + here.delta, activations(of, l - 1), row, column, here.n, prev.n,
        0, m, here.stride, prev.stride,
        [&](int j, int k) { return parameter(w + size_t(j) * prev.n + k); },
        [&](int j, int k, float product, Parameter old) {
          change(of, w + size_t(j) * prev.n + k, old, product * mean, c, true);
        },
        [&](float delta) { sum += delta; });
    if (column != 0) return;  // the whole block
    sums[thread / Gradient::BM][thread % Gradient::BM] = sum;
    __syncthreads();
    if (thread >= Gradient::BM || row + thread >= here.n) return;
    for (int other = 1; other < share; ++other) sum += sums[other][thread];
    const size_t at = of.at + here.b + row + thread;
    change(of, at, parameter(at), sum * mean, c, false);
  }

  // w_j ← w_j min(1, limit / ‖w_j‖), the last of a member's constants being the limit: a warp a row.
  __device__ __forceinline__ void limit_norms() const {
    const int warps = gridDim.x * (THREADS / 32);
#pragma unroll 1
    for (int here = 0; here < members; ++here) {
      const Member of = member(here);
#pragma unroll 1
      for (int l = 1; l <= last; ++l) {
        const int n = layers[l].n, fan_in = layers[l - 1].n;
#pragma unroll 1
        for (int j = warp * gridDim.x + blockIdx.x; j < n; j += warps)
          limit_row(p + of.at + layers[l].w + size_t(j) * fan_in, fan_in, of.constants[5], lane);
      }
    }
  }

  __device__ __forceinline__ void record_cost(const Member& of) {
    if (warp != 0) return;
    double sum = 0;
#pragma unroll 4
    for (int x = lane; x < m; x += 32) sum += of.row_costs[x];
    sum = warp_sum(sum);
    if (lane == 0) of.costs[step] = sum / m;
  }

  // ------------------------------------------------------------------------------- the epoch

  __device__ __forceinline__ void run() {
    auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
    bring_rows(0, 0);
    meet();
#pragma unroll 1
    for (step = 0; step < steps; ++step) {
      m = min(batch, rows - step * batch);
#pragma unroll 1
      for (int l = 1; l <= last; ++l) {
        if (l < last)
          hidden_layer(shared, l);
        else
          last_layer(shared);
        if (l == 1) {  // behind the last step there are none
          const int tiles = tiles_of(m, Forward::BM) * tiles_of(layers[1].n, Forward::BN) * members;
          bring_rows(step + 1, tiles % gridDim.x);
        }
        meet();
      }
#pragma unroll 1
      for (int l = last - 1; l > 0; --l) {
        hidden_error(shared, l);
        meet();
      }
      update(shared);
      meet();
      if (limits) {
        limit_norms();
        meet();
      }
    }
  }
};

// Any grid along x, a cooperative launch; `arrived` is 0. X is of float, or of bytes that mean 0 … 255;
// `constants` are clip_value, infinite where there is none, l1, the rule's and the norms' limit; weights, s0 and
// s1 may be null where the rule has no such state. Members are those from `first` on.
template <class Stored, class Form, class Objective, class Rule, class Last, class... Hidden>
__global__ void __launch_bounds__(Form::threads, 1)
    persistent(const Stored* X, const float* Y, const int* order, const float* weights,
               const unsigned* dropout, const double* coefficients, const float* constants, const int* places, float* p,
               float* s0, float* s1,
               float* scratch, double* row_costs, double* costs, const long long* table,
               unsigned* arrived, long long length, long long scratch_length, int rows, int batch,
               int members, int first, int last, int limits) {
  __shared__ PersistentLayer layers[most_layers + 1];
  const int thread = threadIdx.x;
  auto* words = reinterpret_cast<long long*>(layers);
  for (int e = thread; e < (last + 1) * int(sizeof(PersistentLayer) / sizeof(long long));
       e += Form::threads)
    words[e] = table[e];
  __syncthreads();
  PersistentEpoch<Stored, Form, Objective, Rule, Last, Hidden...> epoch{
      X, Y, order, weights, dropout, coefficients, constants, places, p, s0, s1, scratch, row_costs, costs,
      arrived, size_t(length), size_t(scratch_length), rows, batch, members, first, last, limits != 0, layers,
      (rows + batch - 1) / batch, thread, thread / 32, thread % 32, 0, 0, 0};
  epoch.run();
}
