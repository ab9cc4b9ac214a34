// A kernel for each primitive, for tests/kernels/test_primitives.py.
#include "../../../kernels/cuda/primitives/async_copy.cuh"
#include "../../../kernels/cuda/primitives/cluster.cuh"
#include "../../../kernels/cuda/primitives/grid.cuh"
#include "../../../kernels/cuda/primitives/last_block.cuh"
#include "../../../kernels/cuda/primitives/launch.cuh"
#include "../../../kernels/cuda/primitives/letters.cuh"
#include "../../../kernels/cuda/primitives/load_matrix.cuh"
#include "../../../kernels/cuda/primitives/mma.cuh"
#include "../../../kernels/cuda/primitives/prefetch.cuh"
#include "../../../kernels/cuda/primitives/warp.cuh"

// Of a warp's 32 numbers, what each lane gets. Block 32.
template <class T> __global__ void sum_of_warp(const T* in, T* out) {
  out[threadIdx.x] = warp_sum(in[threadIdx.x]);
}

template <class T> __global__ void max_of_warp(const T* in, T* out) {
  out[threadIdx.x] = warp_max(in[threadIdx.x]);
}

// Rounds of 32 numbers from `in` (rounds, 32) to `out`, each fetched `ahead` rounds early into one
// of `ahead` + 1 places. Block 32. `early` holds what stands in the place that was fetched last.
template <class T, int ahead> __global__ void fetch_ahead(const T* in, T* out, T* early, int rounds) {
  __shared__ T place[ahead + 1][32];
  const int lane = threadIdx.x;
  AsyncCopies copies;
  for (int round = 0; round < ahead; ++round) {
    if (round < rounds) copies.copy<sizeof(T)>(&place[round][lane], in + round * 32 + lane);
    copies.commit();
  }
  for (int round = 0; round < rounds; ++round) {
    const int next = round + ahead;
    if (next < rounds) copies.copy<sizeof(T)>(&place[next % (ahead + 1)][lane], in + next * 32 + lane);
    copies.commit();
    early[round * 32 + lane] = place[next % (ahead + 1)][lane];
    copies.wait<ahead>();
    __syncthreads();
    out[round * 32 + lane] = place[round % (ahead + 1)][31 - lane];
    __syncthreads();
  }
}

// out (4, 32): 16 bytes per thread, from `in` on, by way of shared memory.
__global__ void fetch_sixteen_bytes(const float* in, float* out) {
  __shared__ __align__(16) float place[128];
  const int at = 4 * threadIdx.x;
  AsyncCopies copies;
  copies.copy<16>(place + at, in + at);
  copies.commit();
  copies.wait<0>();
  for (int i = 0; i < 4; ++i) out[at + i] = place[at + i];
}

// out (block, rounds, 32): each round the four blocks of a cluster send each other a number a
// thread, and each adds the four in order of their ranks. Block 32.
template <class T, int places> __global__ void send_in_cluster(T* out, int rounds) {
  __shared__ T come[places][4][32];
  __shared__ TransactionBarrier all_here;
  const int lane = threadIdx.x, rank = cluster_rank();
  if (lane == 0) all_here.init();
  cluster_barrier();
  for (int round = 0; round < rounds; ++round) {
    T(&place)[4][32] = come[round % places];
    const T own = T(1) / T(1 + blockIdx.x + 8 * round + lane);
    if (lane == 31) all_here.expect(sizeof(place));
    for (int to = 0; to < 4; ++to) send(&place[rank][lane], own, all_here, to);
    all_here.wait(round);
    T sum = 0;
    for (int i = 0; i < 4; ++i) sum += place[i][lane];
    out[(blockIdx.x * rounds + round) * 32 + lane] = sum;
    __syncthreads();
  }
}

// A cluster of two blocks, of a thread each.
__global__ void break_transaction_rule(int rule) {
  __shared__ float come[2];
  __shared__ TransactionBarrier here;
  here.init();
  cluster_barrier();
  const int other = 1 - cluster_rank();
  here.expect(rule == 0 ? 1 << 20 : rule == 3 ? 8 : 4);
  if (rule == 1) here.expect(4);
  if (rule == 2) here.wait(1);
  send(&come[0], 1.0f, here, other);
  if (rule == 4) send(&come[1], 1.0f, here, other);
  here.wait(0);
  cluster_barrier();
}

// out (block, rounds, 32): each round four blocks that run at once tell each other a number a
// thread, and each adds the four in order. Block 32; letters (blocks / 4, places, 4, 32 numbers).
template <class T, int places>
__global__ void tell_others(T* out, unsigned long long* letters, int rounds) {
  __shared__ T own[32];
  const int lane = threadIdx.x, rank = blockIdx.x % 4, four = blockIdx.x / 4;
  for (int round = 0; round < rounds; ++round) {
    auto* place = letters + (four * places + round % places) * 128 * words_of<T>;
    own[lane] = T(1) / T(1 + blockIdx.x + 8 * round + lane);
    send(place + (rank * 32 + lane) * words_of<T>, own[lane], round + 1);
    T all[4], sum = 0;
    receive<1>(all, place + lane * words_of<T>, own + lane, 32, rank, round + 1);
    for (int i = 0; i < 4; ++i) sum += all[i];
    out[(blockIdx.x * rounds + round) * 32 + lane] = sum;
    __syncthreads();
  }
}

__global__ void copy_after_wait(const float* in, float* out) {
  await_prerequisites();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void rank_of_no_cluster(int* out) { *out = cluster_rank(); }

// out = Σ of all threads' numbers, of as many threads as there are in `parts`; `last` (block) tells
// who added them.
__global__ void add_when_last(int* parts, int* out, int* last, unsigned* finished) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  parts[blockIdx.x * threads + thread] = 1 + blockIdx.x;
  const bool mine = last_block(finished);
  if (thread == threads - 1) last[blockIdx.x] = mine;
  if (!mine || thread != threads - 1) return;
  int sum = 0;
  for (int part = 0; part < gridDim.x * threads; ++part) sum += parts[part];
  *out = sum;
}

// Each lane's own numbers of A, B and C (32, values), and of the D that becomes of them. Block 32.
__global__ void mma_tf32_of_warp(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x;
  unsigned of_a[4], of_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) of_a[i] = round_tf32(a[4 * lane + i]), sum[i] = d[4 * lane + i];
  for (int i = 0; i < 2; ++i) of_b[i] = round_tf32(b[2 * lane + i]);
  mma_tf32(sum, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

__global__ void mma_bf16_of_warp(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x;
  unsigned of_a[4], of_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    of_a[i] = round_bf16(a[8 * lane + 2 * i], a[8 * lane + 2 * i + 1]);
    sum[i] = d[4 * lane + i];
  }
  for (int i = 0; i < 2; ++i) of_b[i] = round_bf16(b[4 * lane + 2 * i], b[4 * lane + 2 * i + 1]);
  mma_bf16(sum, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

// Half of a warp leaves before the product.
__global__ void mma_of_half_a_warp(float* d) {
  if (threadIdx.x >= 16) {
    __syncwarp(0xffff0000u);
    return;
  }
  const unsigned a[4] = {}, b[2] = {};
  float sum[4] = {};
  mma_tf32(sum, a, b);
  d[threadIdx.x] = sum[0];
}

// bits (n, 2): x as TF32 and, with itself, as a pair of bf16.
__global__ void round_factors(const float* x, unsigned* bits, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    bits[2 * i] = round_tf32(x[i]);
    bits[2 * i + 1] = round_bf16(x[i], x[n - 1 - i]);
  }
}

// Four 8 × 8 matrices below each other (32, 8), as the lanes get them (32, 8), and turned.
__global__ void load_of_warp(const unsigned short* in, unsigned short* out, unsigned short* turned) {
  __shared__ alignas(16) unsigned short x[32][8];
  const int lane = threadIdx.x;
  for (int j = 0; j < 8; ++j) x[lane][j] = in[8 * lane + j];
  __syncwarp();
  unsigned got[4];
  load_matrices(got, x[lane]);
  memcpy(out + 8 * lane, got, sizeof got);
  load_transposed(got, x[lane]);
  memcpy(turned + 8 * lane, got, sizeof got);
}

// It reads what other lanes wrote, and nothing says that they have.
__global__ void load_too_early(unsigned* out) {
  __shared__ alignas(16) unsigned x[32][4];
  const int lane = threadIdx.x;
  for (int j = 0; j < 4; ++j) x[lane][j] = lane;
  unsigned got[4];
  load_matrices(got, x[lane]);
  out[lane] = got[0];
}

__global__ void load_from_between(unsigned* out) {
  __shared__ alignas(16) unsigned x[33][4];
  unsigned got[4];
  load_matrices(got, &x[threadIdx.x][2]);
  out[threadIdx.x] = got[0];
}

__global__ void prefetch_at(const float* x, float* out, int at) {
  prefetch(x + at);
  *out = 1;
}

// Each block writes, meets all others and reads what the next has written: x (rounds + 1, blocks · 32),
// of which the first row is given, and each other is the one before, a block further, plus 1.
__global__ void pass_on(float* x, unsigned* arrived, int rounds, int meets) {
  const int width = gridDim.x * 32, here = blockIdx.x * 32 + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    x[(round + 1) * width + here] = x[round * width + (here + 32) % width] + 1;
    if (meets) grid_barrier(arrived, round + 1);
  }
}
