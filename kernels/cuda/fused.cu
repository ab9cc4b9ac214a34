// A step of gradient descent for narrow networks and wide batches, in two launches and, where norms of
// weights have a limit, one more a layer, `fused_limit_norms`. `fused`:
//
//   forward   z^l = a^{l-1} w^lᵀ + b^l,  a^l = σ(z^l)
//   C, BP1    δ^L = ∇_a C ⊙ σ'(z^L)
//   BP2       δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l)
//   BP3, BP4  Σ_x δ^l,  Σ_x δ^lᵀ a^{l-1}, of each block's rows
//
// and `fused_update`, which adds what the blocks have and changes the parameters by a rule.
//
//   X (n, n_0) of float or of bytes  Y (n, n_L)   of all members of a population
//   order, weights (members, n)  coefficients (members, steps, 6)  constants (members, 6)
//   parameters p, state s0, s1 (…, length), of which member i has row places[i]
//   parts (members of the launch, blocks, length)  costs (members, steps)
//
// Tiling. A block has all of w and b in its shared memory, rounded to Factors (fused.cuh), and takes
// tiles of ROWS rows through all layers and back, every `blocks`-th of its member's. Activations do not
// leave the chip. A warp makes the z, and the δ, of its rows and columns, as 16 × 16 numbers; and of
// every layer a part of ∂C/∂w over all rows of the tile, which it adds, by the plain cores, to what the
// tiles before have made: in registers, or, where those are too few, in its block's row of parts. δ^l
// takes the place of a^l. While a tile is computed the rows of the next come into the L2 cache.
//
// A tile, a barrier of the block after each line (of the warp, where it has its rows to itself *):
//   the rows of X, rounded
//   forward of a hidden layer *
//   forward of the last layer, C, BP1
//   BP4 of layer l + 1 and the sums of BP2 of layer l, from the last to the first
//   δ^l in place of a^l, BP3
//   BP4 of layer 1
//
// With bf16, σ' is rounded, too: it waits for BP2 beside a, since σ'(rounded a) is far off.
//
// Time, 64 × 4, 256 rows, 8 warps, bf16, a tile, a multiprocessor of an H100 (1270 multiply-adds a
// cycle by mma.sync): 11 products of 512 mma take 9.1k cycles; shared memory, at a wavefront a cycle,
// 768 for the fragments of each forward and BP2, 1536 of each BP4, 256 for what each stores: 13.3k; σ,
// slopes and sums, ten instructions a number of z or δ over four schedulers, 10k. Nothing but other
// warps hides one behind the other, so that a half of the 13.3k's rate is what to expect.
//
// Every sum has one order, so the same launch gives the same bits, whichever members are beside.
#include "costs.cuh"
#include "fused.cuh"
#include "norms.cuh"
#include "primitives/last_block.cuh"
#include "primitives/launch.cuh"
#include "primitives/prefetch.cuh"
#include "primitives/warp.cuh"
#include "rules.cuh"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

// The sum over the eight lanes that have the same columns.
__device__ __forceinline__ float column_sum(float value) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// A row of N outputs, of which four lanes have the z in fragments; they become δ.
template <int COUNT, int N> struct RowInRegisters {
  static constexpr int numbers = 4 * COUNT;  // of a lane
  Square (&all)[COUNT];
  const float (&y)[numbers];
  int half, lane;
  bool inside;
  float weight;
  float& cost;

  static __device__ float largest() { return 3.40282347e+38f; }
  static __device__ float sum(float x) { return warp_sum<4>(x); }
  static __device__ float max(float x) { return warp_max<4>(x); }
  __device__ int column(int e) const { return e / 4 * 16 + e / 2 % 2 * 8 + 2 * lane + e % 2; }
  __device__ float& z(int e) const { return all[e / 4][e / 2 % 2][e % 2 + 2 * half]; }
  __device__ void take(int e, Output<float> output) const {
    const bool there = inside && column(e) < N;
    if (there) cost += output.term * weight;
    z(e) = there ? output.error * weight : 0.0f;
  }
  template <class Body> __device__ __forceinline__ void each(Body body) const {
#pragma unroll
    for (int e = 0; e < numbers; ++e)
      if (column(e) < N) body(column(e), z(e), y[e]);
  }
  template <class Body> __device__ __forceinline__ void put(Body body) const {
#pragma unroll
    for (int e = 0; e < numbers; ++e) take(e, body(column(e), z(e), y[e]));
  }
  // z of output j, whichever lane has it. All lanes ask, each for one of its own.
  __device__ float z_of(int j) const {
    float found = 0;
#pragma unroll
    for (int e = 0; e < numbers; ++e) {
      const float of_lane = __shfl_sync(0xffffffffu, z(e), (threadIdx.x & 28) + j / 2 % 4);
      if (e == j / 16 * 4 + j / 8 % 2 * 2 + j % 2) found = of_lane;
    }
    return found;
  }
};

template <class Stored, class Factors, class Form, class Objective, int INPUTS, class... Layers>
struct FusedPass {
  static constexpr int ROWS = Form::rows, THREADS = Form::threads;
  using Cost = typename Objective::Cost;
  using Shared = FusedShared<Factors, Form, INPUTS, Layers...>;
  using Network = typename Shared::Network;
  using RowUnits = Units<ROWS / 16, Form::row_warps>;
  static constexpr int outputs = Network::outputs_of_all;
  static constexpr Contiguous by_p = Contiguous::p, by_result = Contiguous::result;
  static_assert(sizeof(Shared) == Form::bytes, "planning counts the same bytes");
  static_assert(ROWS / 16 % Form::row_warps == 0, "whole units for each warp");

  Shared& shared;
  const Stored* X;
  const float* Y;
  const int* order;  // of this step's rows
  const float* weights;  // theirs, or null where all are 1
  const Dropping dropping;
  const float* p;    // this member's
  float* part;       // this block's
  const int m, thread, warp, lane;
  int left = 0;  // rows of this tile
  int done = 0;  // tiles of this block
  double total = 0;

  __device__ __forceinline__ FusedPass(Shared& shared_memory, const Stored* X_, const float* Y_,
                                       const int* order_, const float* weights_,
                                       Dropping dropping_, const float* p_, float* part_, int m_)
      : shared(shared_memory), X(X_), Y(Y_), order(order_), weights(weights_),
        dropping(dropping_), p(p_), part(part_), m(m_), thread(threadIdx.x), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}

  // Where this tile begins.
  __device__ __forceinline__ size_t row_of_step() const {
    return (blockIdx.x + size_t(done) * gridDim.x) * ROWS;
  }

  // Rows that a warp has to itself need no barrier but its own.
  __device__ __forceinline__ void rows_barrier() {
    if constexpr (Form::column_warps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ __forceinline__ RowUnits own_rows() const {
    return {warp / Form::column_warps};
  }
  template <int N> using OwnColumns = Units<N / 16, Form::column_warps>;

  // ------------------------------------------------------------------ from and to device memory

  // Four numbers of a row of WIDTH, from k on; what is none is 0.
  template <int WIDTH, class T>
  __device__ __forceinline__ Run<float, 4> run_of(const T* row, int k, bool inside) const {
    Run<T, 4> x = {};
    if (WIDTH % 4 == 0) {
      if (inside && k < WIDTH) x = *reinterpret_cast<const Run<T, 4>*>(row + k);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (inside && k + v < WIDTH) x.x[v] = row[k + v];
    }
    return {{float(x.x[0]), float(x.x[1]), float(x.x[2]), float(x.x[3])}};
  }

  template <class Here> __device__ __forceinline__ void load(Here& here, size_t w, size_t b) {
    constexpr int runs = Here::inputs / 4;
#pragma unroll 4
    for (int e = thread; e < Here::outputs * runs; e += THREADS) {
      const int j = e / runs, k = e % runs * 4;
      here.w.put(j, k, run_of<Here::fan_in>(p + w + size_t(j) * Here::fan_in, k, j < Here::n));
    }
#pragma unroll 1
    for (int j = thread; j < Here::outputs; j += THREADS) {
      here.b[j] = j < Here::n ? p[b + j] : 0.0f;
      for (auto& sums : here.sums) sums[j] = 0;
    }
    if constexpr (!Here::last)
      load(here.next, w + aligned<Here::n * Here::fan_in>, b + aligned<Here::n>);
  }

  __device__ __forceinline__ void find_rows(int tile) {
#pragma unroll 1
    for (int i = thread; i < ROWS; i += THREADS)
      if (tile * ROWS + i < m)
        shared.sources[tile / gridDim.x % 2][i] = order[tile * ROWS + i];
  }

  __device__ __forceinline__ void load_rows(const int* sources) {
    constexpr int runs = padded<INPUTS> / 4;
#pragma unroll 4
    for (int e = thread; e < ROWS * runs; e += THREADS) {
      const int i = e / runs, k = e % runs * 4;
      const bool inside = i < left;
      const Stored* row = X + size_t(inside ? sources[i] : 0) * INPUTS;
      shared.x.put(i, k, run_of<INPUTS>(row, k, inside));
    }
  }

  template <int WIDTH, class T>
  __device__ __forceinline__ void prefetch_rows(const T* matrix, const int* sources, int count) {
    constexpr int bytes = WIDTH * sizeof(T), lines = units_of<bytes, 128>;
#pragma unroll 1
    for (int e = thread; e < count * lines; e += THREADS) {
      const auto* row = reinterpret_cast<const char*>(matrix + size_t(sources[e / lines]) * WIDTH);
      prefetch(row + min(e % lines * 128, bytes - 1));
    }
  }

  // ------------------------------------------------------------------------------------ forward

  template <class Prev, class Here>
  __device__ __forceinline__ void forward(const Prev& a_prev, Here& here) {
    using Sigma = typename Here::Layer::Sigma;
    const RowUnits rows = own_rows();
    const OwnColumns<Here::outputs> columns{warp % Form::column_warps};
    Square z[rows.count][columns.count];
    multiply<Factors, Here::inputs, by_p, by_p>(z, a_prev, here.w, rows, columns);
    each_pair(z, rows, columns, [&](int i, int j, float& z0, float& z1) {
      z0 += here.b[j];
      z1 += here.b[j + 1];
      const float a0 = Sigma::value(z0), a1 = Sigma::value(z1);
      float r0 = 1, r1 = 1;
      if constexpr (Form::drops) {
        constexpr int l = Network::behind + 1 - Here::behind;
        r0 = dropping.factor<float>(l, row_of_step() + i, j);
        r1 = dropping.factor<float>(l, row_of_step() + i, j + 1);
      }
      here.a.put(i, j, Run<float, 2>{{a0 * r0, a1 * r1}});
      if constexpr (Here::keeps)
        here.slope.put(i, j, Run<float, 2>{{Sigma::derivative(Sigma::from_z ? z0 : a0) * r0,
                                            Sigma::derivative(Sigma::from_z ? z1 : a1) * r1}});
    });
    rows_barrier();
  }

  // -------------------------------------------------------------------------------- C and BP1

  // The last layer's z, C and δ, of 16 rows at a time: a row's outputs are four lanes'.
  template <class Prev, class Here>
  __device__ __forceinline__ void output_error(const Prev& a_prev, Here& here, const int* sources) {
    using Columns = Units<Here::outputs / 16, 1>;
    constexpr int n = Here::n;
    float cost = 0;
#pragma unroll 1
    for (int unit = warp; unit < ROWS / 16; unit += Form::warps) {
      // Its rows are those whose a^{L-1} it has made, if a warp has rows to itself.
      const Units<ROWS / 16, ROWS / 16> rows{unit};
      const Columns columns{0};
      Square z[1][Columns::count];
      multiply<Factors, Here::inputs, by_p, by_p>(z, a_prev, here.w, rows, columns);
      each_pair(z, rows, columns, [&](int, int j, float& z0, float& z1) {
        z0 += here.b[j];
        z1 += here.b[j + 1];
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = rows.at(0) + lane / 4 + 8 * half;
        const bool inside = i < left;
        const size_t row = row_of_step() + i;
        cost += row_error<Here>(z[0], Y + size_t(inside ? sources[i] : 0) * n, half, inside,
                                inside && weights != nullptr ? weights[row] : 1.0f);
      }
      each_pair(z, rows, columns, [&](int i, int j, float& d0, float& d1) {
        here.a.put(i, j, Run<float, 2>{{d0, d1}});
      });
      add_columns(here.sums[warp], z, rows, columns);
    }
    total += double(cost);
  }

  // c summed over a lane's outputs of one of its two rows, whose z become δ.
  template <class Here, int COUNT>
  __device__ __forceinline__ float row_error(Square (&all)[COUNT], const float* targets, int half,
                                             bool inside, float weight) {
    using Sigma = typename Here::Layer::Sigma;
    constexpr int n = Here::n, numbers = 4 * COUNT;
    float y[numbers] = {}, cost = 0;
    const RowInRegisters<COUNT, n> row{all, y, half, lane % 4, inside, weight, cost};
    auto column = [&](int e) { return row.column(e); };
#pragma unroll
    for (int e = 0; e < numbers; e += 2) {
      if (!inside || column(e) >= n) continue;
      if (n % 2 == 0) {
        const auto pair = *reinterpret_cast<const Run<float, 2>*>(targets + column(e));
        y[e] = pair.x[0];
        y[e + 1] = pair.x[1];
      } else {
        y[e] = targets[column(e)];
        if (column(e) + 1 < n) y[e + 1] = targets[column(e) + 1];
      }
    }
    if constexpr (by_row<Objective, Sigma>) {
      outputs_of_row<Objective, Sigma, float>(row);
    } else if constexpr (Cost::pairs) {
      float other[numbers];
#pragma unroll
      for (int e = 0; e < numbers; ++e)
        other[e] = row.z_of(column(e) < n / 2 ? column(e) + n / 2 : max(column(e) - n / 2, 0));
#pragma unroll
      for (int e = 0; e < numbers; ++e) {
        const bool first = column(e) < n / 2;
        const float z = row.z(e);
        const auto pair = pair_of_outputs<Objective, Sigma>(first ? z : other[e],
                                                            first ? other[e] : z, y[e]);
        row.take(e, first ? Output<float>{pair.term, pair.of_first}
                          : Output<float>{0, pair.of_second});
      }
    } else {
#pragma unroll
      for (int e = 0; e < numbers; ++e)
        row.take(e, output_of<Objective, Sigma>(row.z(e), y[e], column(e)));
    }
    return cost;
  }

  // ------------------------------------------------------------------------------- BP2 and BP3

  template <class Here> __device__ __forceinline__ void hidden_error(Here& here) {
    using Sigma = typename Here::Layer::Sigma;
    const RowUnits rows = own_rows();
    const OwnColumns<Here::outputs> columns{warp % Form::column_warps};
    Square delta[rows.count][columns.count];
    multiply<Factors, Here::Next::outputs, by_p, by_result>(delta, here.next.a, here.next.w, rows,
                                                            columns);
    __syncthreads();  // a^l has been read
    each_pair(delta, rows, columns, [&](int i, int j, float& d0, float& d1) {
      if constexpr (Here::keeps) {
        const Run<float, 2> slope = here.slope.get(i, j);
        d0 *= slope.x[0];
        d1 *= slope.x[1];
      } else {
        const Run<float, 2> a = here.a.get(i, j);
        d0 *= Sigma::derivative(a.x[0]);
        d1 *= Sigma::derivative(a.x[1]);
      }
      here.a.put(i, j, Run<float, 2>{{d0, d1}});
    });
    add_columns(here.sums[warp / Form::column_warps], delta, rows, columns);
    __syncthreads();
  }

  // δ summed over a warp's rows, in `sums`, of which no other warp has the same columns.
  template <class I, class J>
  __device__ __forceinline__ void add_columns(float* sums, Square (&delta)[I::count][J::count],
                                              I rows, J columns) {
#pragma unroll
    for (int c = 0; c < J::count; ++c) {
      if (!columns.has(c)) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float sum = 0;
#pragma unroll
        for (int r = 0; r < I::count; ++r)
          sum += delta[r][c][e / 2][e % 2] + delta[r][c][e / 2][e % 2 + 2];
        sum = column_sum(sum);
        if (lane < 4) sums[columns.at(c) + e / 2 * 8 + 2 * lane + e % 2] += sum;
      }
    }
  }

  // ------------------------------------------------------------------------------------ BP4

  // w is where the layer's weights begin.
  template <class Prev, class Here>
  __device__ __forceinline__ void weight_gradient(const Prev& a_prev, Here& here,
                                                  Gradients<Here>& gradients, size_t w) {
    const auto [rows, columns] = own_weights<Here>();
    Square g[Here::Rows::count][Here::Columns::count];
    multiply<Factors, ROWS, by_result, by_result>(g, here.a, a_prev, rows, columns);
    if constexpr (Form::in_registers) {
#pragma unroll
      for (int r = 0; r < Here::Rows::count; ++r)
#pragma unroll
        for (int c = 0; c < Here::Columns::count; ++c)
#pragma unroll
          for (int e = 0; e < 8; ++e) gradients.of[r][c][e / 4][e % 4] += g[r][c][e / 4][e % 4];
    } else {
      put<Here>(g, w, done > 0);
    }
  }

  template <class Here> struct OwnWeights {
    typename Here::Rows rows;
    typename Here::Columns columns;
  };
  template <class Here> __device__ __forceinline__ OwnWeights<Here> own_weights() const {
    constexpr int across = Form::warps / Here::Layer::sharers;
    return {{warp / across}, {warp % across}};
  }

  // Into the block's part of the gradient.
  template <class Here>
  __device__ __forceinline__ void put(Square (&g)[Here::Rows::count][Here::Columns::count],
                                      size_t w, bool adds) {
    const auto [rows, columns] = own_weights<Here>();
    each_pair(g, rows, columns, [&](int j, int k, float& first_number, float& second_number) {
      float* place = part + w + size_t(j) * Here::fan_in + k;
      if (j < Here::n && k < Here::fan_in) {
        if (Here::fan_in % 2 == 0) {
          auto& pair = *reinterpret_cast<Run<float, 2>*>(place);
          const Run<float, 2> old = adds ? pair : Run<float, 2>{};
          pair = {{old.x[0] + first_number, old.x[1] + second_number}};
        } else {
          place[0] = (adds ? place[0] : 0.0f) + first_number;
          if (k + 1 < Here::fan_in) place[1] = (adds ? place[1] : 0.0f) + second_number;
        }
      }
    });
  }

  template <class Here>
  __device__ __forceinline__ void put_all(Here& here, Gradients<Here>& gradients, size_t w,
                                          size_t b) {
    if constexpr (Form::in_registers) put<Here>(gradients.of, w, false);
#pragma unroll 1
    for (int j = thread; j < Here::n; j += THREADS) {
      float sum = 0;
      for (const auto& sums : here.sums) sum += sums[j];
      part[b + j] = sum;
    }
    if constexpr (!Here::last)
      put_all(here.next, gradients.next, w + aligned<Here::n * Here::fan_in>,
              b + aligned<Here::n>);
  }

  // ------------------------------------------------------------------------------------ a tile

  // Forward through a layer and all behind it, and back.
  template <class Prev, class Here>
  __device__ __forceinline__ void pass(const Prev& a_prev, Here& here, Gradients<Here>& gradients,
                                       size_t w, const int* sources) {
    if constexpr (Here::last) {
      output_error(a_prev, here, sources);
      __syncthreads();
    } else {
      forward(a_prev, here);
      pass(here.a, here.next, gradients.next, w + aligned<Here::n * Here::fan_in>, sources);
      hidden_error(here);
    }
    weight_gradient(a_prev, here, gradients, w);
  }

  // All tiles of this block; the cost of its rows is with its first thread.
  __device__ __forceinline__ void run() {
    Gradients<Network> gradients;
    load(shared.network, 0, Network::all_weights);
    int tile = blockIdx.x;
    find_rows(tile);
    __syncthreads();
#pragma unroll 1
    for (; tile * ROWS < m; tile += gridDim.x) {
      const int* sources = shared.sources[tile / gridDim.x % 2];
      left = min(ROWS, m - tile * ROWS);
      load_rows(sources);
      const int next = tile + gridDim.x, count = min(ROWS, m - next * ROWS);
      find_rows(next);
      __syncthreads();
      const int* after = shared.sources[next / gridDim.x % 2];
      prefetch_rows<INPUTS>(X, after, count);
      prefetch_rows<outputs>(Y, after, count);
      pass(shared.x, shared.network, gradients, 0, sources);
      ++done;
      __syncthreads();  // x and δ have been read
    }
    put_all(shared.network, gradients, 0, Network::all_weights);
    total = warp_sum(total);
    if (lane == 0) shared.totals[warp] = total;
    __syncthreads();
    if (thread == 0)
      for (int other = 1; other < Form::warps; ++other) total += shared.totals[other];
  }
};

// Grid (blocks of a member, members from `first` on). A step has m rows, of n; those of an epoch's
// others have `batch`. cost_parts (members of the launch, blocks), `finished` (members of the launch),
// 0 before the first launch.
template <class Stored, class Factors, class Form, class Objective, int INPUTS, class... Layers>
__global__ void __launch_bounds__(Form::threads, Form::blocks)
    fused(const Stored* X, const float* Y, const int* order, const float* weights,
          const unsigned* dropout, const int* step, const int* places, const float* p, float* parts, double* cost_parts, unsigned* finished,
          double* costs, int n, int batch, int m, int first) {
  await_prerequisites();
  using Pass = FusedPass<Stored, Factors, Form, Objective, INPUTS, Layers...>;
  using Network = typename Pass::Network;
  constexpr size_t length = Network::all_weights + Network::all_biases;
  const size_t here = blockIdx.y, member = first + here, blocks = gridDim.x;
  auto& shared = *reinterpret_cast<typename Pass::Shared*>(dynamic_shared);
  const size_t rows = member * n + size_t(*step) * batch;
  Pass pass(shared, X, Y, order + rows, weights == nullptr ? nullptr : weights + rows,
            {dropout + member * (3 + Network::behind), unsigned(*step)}, p + places[member] * length,
            parts + (here * blocks + blockIdx.x) * length, m);
  pass.run();

  // C, by the last block.
  double* sums = cost_parts + here * blocks;
  if (threadIdx.x == 0) sums[blockIdx.x] = pass.total;
  if (!last_block(finished + here) || threadIdx.x >= 32) return;
  double total = 0;
  for (int block = threadIdx.x; block < blocks; block += 32) total += sums[block];
  total = warp_sum(total);
  if (threadIdx.x == 0) costs[member * ((n + batch - 1) / batch) + *step] = total / m;
}

// Block (32, 8), grid (length / 32, members from `first` on), where length is a multiple of 32: a warp
// adds every eighth of the parts of 32 parameters, the first warp those sums, and changes the
// parameters. It takes the time of its bytes, those of parts.
template <class Rule>
__global__ void __launch_bounds__(256)
    fused_update(const float* parts, const double* coefficients, const float* constants,
                 const int* step, const int* places, float* p, float* s0, float* s1, int length,
                 int weights_end, int blocks, int steps, int m, int first) {
  await_prerequisites();
  __shared__ float sums[8][32];
  const size_t member = first + blockIdx.y;
  const int e = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
#pragma unroll 8
  for (int block = threadIdx.y; block < blocks; block += 8)
    sum += parts[(size_t(blockIdx.y) * blocks + block) * length + e];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int other = 1; other < 8; ++other) sum += sums[other][threadIdx.x];

  const float* of_member = constants + member * 6;
  float c[5];
  for (int i = 0; i < 5; ++i) c[i] = float(coefficients[(member * steps + *step) * 6 + i]);
  const size_t at = size_t(places[member]) * length + e;
  const bool weight = e < weights_end;
  const float old = p[at];
  float state0 = s0 == nullptr ? 0 : s0[at], state1 = s1 == nullptr ? 0 : s1[at];
  float gradient = clip_by_value(sum * (1.0f / float(m)), of_member[0]);
  if (weight) gradient = penalized(gradient, old, of_member[1], c[4]);
  p[at] = Rule::apply(old, gradient, state0, state1, c, of_member[2], of_member[3], of_member[4],
                      weight);
  if (s0 != nullptr) s0[at] = state0;
  if (s1 != nullptr) s1[at] = state1;
}

// w_j ← w_j min(1, limit / ‖w_j‖) of a layer's w (n, fan_in) at `begin` of each member, the last of its
// constants being the limit. Block (32, 8), grid (n / 8, members from `first` on): a warp a row. Expected
// to take the time of a launch, 1 to 2 µs.
__global__ void __launch_bounds__(256)
    fused_limit_norms(const float* constants, const int* places, float* p, int length, int begin,
                      int n, int fan_in, int first) {
  await_prerequisites();
  const int row = blockIdx.x * 8 + threadIdx.y, member = first + blockIdx.y;
  if (row >= n) return;
  limit_row(p + size_t(places[member]) * length + begin + size_t(row) * fan_in, fan_in,
            constants[member * 6 + 5], threadIdx.x);
}
