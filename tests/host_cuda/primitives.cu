// A kernel for each primitive, for tests/test_primitives.py.
#include "../../kernels/cuda/primitives/async_copy.cuh"
#include "../../kernels/cuda/primitives/cluster.cuh"
#include "../../kernels/cuda/primitives/letters.cuh"
#include "../../kernels/cuda/primitives/warp.cuh"

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

// out (4, 32): 16 bytes a thread, from `in` on, by way of shared memory.
__global__ void fetch_sixteen_bytes(const float* in, float* out) {
  __shared__ __align__(16) float place[128];
  const int at = 4 * threadIdx.x;
  AsyncCopies copies;
  copies.copy<16>(place + at, in + at);
  copies.commit();
  copies.wait<0>();
  for (int i = 0; i < 4; ++i) out[at + i] = place[at + i];
}

// out (block, 8): a block's rank, and a number of each block of its cluster. Block 32, 8 blocks.
__global__ void visit_cluster(int* out) {
  __shared__ int number[2];
  const int rank = cluster_rank(), lane = threadIdx.x;
  if (lane < 2) number[lane] = 100 * blockIdx.x + lane;
  cluster_barrier();
  if (lane < 7) out[blockIdx.x * 8 + 1 + lane] = *of_block(&number[lane % 2], lane % 4);
  if (lane == 7) out[blockIdx.x * 8] = rank;
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

__global__ void rank_of_no_cluster(int* out) { *out = cluster_rank(); }
