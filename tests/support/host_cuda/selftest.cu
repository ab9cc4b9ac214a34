// Kernels for tests/kernels/test_harness.py: two that are right, and one that breaks a
// rule at a time, so that the harness is seen to notice.

extern __shared__ alignas(16) unsigned char dynamic_shared[];

// out (n, m) = inᵀ of in (m, n); block (16, 16).
template <class T>
__global__ void __launch_bounds__(256) transpose(const T* in, T* out, int m, int n) {
  __shared__ alignas(16) T tile[16][17];
  const int i = blockIdx.y * 16 + threadIdx.y, j = blockIdx.x * 16 + threadIdx.x;
  if (i < m && j < n) tile[threadIdx.y][threadIdx.x] = in[i * n + j];
#ifndef WITHOUT_BARRIER
  __syncthreads();
#endif
  const int row = blockIdx.x * 16 + threadIdx.y, column = blockIdx.y * 16 + threadIdx.x;
  if (row < n && column < m) out[row * m + column] = tile[threadIdx.x][threadIdx.y];
}

// sums[block] = Σ of its 96 numbers; block 96, dynamic shared memory for a T a warp.
template <class T> __global__ void block_sums(const T* in, T* sums) {
  T* sum_of_warp = reinterpret_cast<T*>(dynamic_shared);
  const int thread = threadIdx.x, lane = thread % warpSize, warp = thread / warpSize;
  T sum = in[blockIdx.x * blockDim.x + thread];
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (lane == 0) sum_of_warp[warp] = sum;
  __syncthreads();
  if (thread > 0) return;
  for (int w = 1; w * warpSize < blockDim.x; ++w) sum += sum_of_warp[w];
  sums[blockIdx.x] = sum;
}

// Half of a block of 64 writes and goes on, the other half waits and reads: what primitives
// that stand for PTX have on the host. `flag` is zero.
__global__ void hand_over(int* out, int* flag) {
  __shared__ int box[32];
  const int thread = threadIdx.x;
  if (thread < 32) {
    box[thread] = thread * thread;
    cuda_host::named_arrive(1, 64, {"bar.arrive", __FILE__, __LINE__});
    if (thread == 0) atomicExch(flag, 1);
  } else {
    while (atomicAdd(flag, 0) == 0) cuda_host::yield();
    cuda_host::named_barrier(1, 64, {"bar.sync", __FILE__, __LINE__});
    out[thread - 32] = box[thread - 32];
  }
}

// `count` barriers and nothing else.
__global__ void barriers(int count) {
  for (int i = 0; i < count; ++i) __syncthreads();
}

// A sum that nobody has set to zero.
__global__ void forgotten_start(const float* in, float* out) {
  float sum;
  for (int i = 0; i < 4; ++i) sum += in[i];
  *out = sum;
}

__device__ int* kept = nullptr;

// Reads what the launch before was given.
__global__ void keep(int* now) {
  if (kept != nullptr) *now = *kept;
  kept = now;
}

// Until somebody gives up.
__global__ void never_ends(int* flag) {
  while (atomicAdd(flag, 0) == 0) cuda_host::yield();
}

enum Rule {  // in the order of RULES in the test
  legal,
  deadlock,
  different_barriers,
  absent_lane,
  past_dynamic_shared,
  past_static_shared,
  past_the_end,
  race_between_blocks,
  shuffle_orders_nothing,
};

// Block 64, out (blocks) and count zero. Every rule but the broken one is kept.
__global__ void break_rule(int broken, int* out, int* count) {
  __shared__ int mine[64];
  __shared__ int is_last;
  const int thread = threadIdx.x, neighbour = thread ^ 1;
  if (broken == different_barriers && thread >= 62) __syncthreads();
  mine[broken == past_static_shared ? thread + 1 : thread] = thread;
  if (broken == shuffle_orders_nothing) {
    __shfl_xor_sync(0xffffffffu, thread, 1);
  } else if (broken != deadlock || thread != 31) {
    __syncwarp();
  }
  const bool right = mine[neighbour] == neighbour;
  if (broken == absent_lane && thread < 8) __shfl_sync(0xffu, thread, 9);
  if (broken == past_dynamic_shared && thread == 0) dynamic_shared[20] = 1;
  __syncthreads();
  if (thread >= 40) return;  // a barrier does not wait for those who left
  __syncthreads();

  // The last block to come reads what all have written.
  if (thread == 0) {
    out[broken == race_between_blocks ? 0 : blockIdx.x + (broken == past_the_end)] = right;
    __threadfence();
    is_last = atomicAdd(count, 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (is_last && thread == 1) {
    __threadfence();
    int sum = 0;
    for (int b = 0; b < gridDim.x; ++b) sum += out[b];
    *count = 100 * sum;
  }
}

// -------------------------------------------------------------------------- clusters

#define CLUSTER_ARRIVE cuda_host::cluster_arrive({"cluster arrive", __FILE__, __LINE__})
#define CLUSTER_WAIT cuda_host::cluster_wait({"cluster wait", __FILE__, __LINE__})

template <class T> __device__ T* at_rank(T* mine, unsigned rank) {
  return static_cast<T*>(cuda_host::map_shared(mine, rank));
}

// A ring: each round, a block's numbers become twice theirs plus those of the next block, with
// static and dynamic shared memory in turn. Dynamic shared memory for blockDim.x ints.
__global__ void ring(int* x, int rounds) {
  __shared__ int even[32];
  int* odd = reinterpret_cast<int*>(dynamic_shared);
  const int thread = threadIdx.x, blocks = cuda_host::cluster_blocks();
  const unsigned next = (cuda_host::cluster_rank() + 1) % blocks;
  int& mine = x[blockIdx.x * blockDim.x + thread];
  even[thread] = mine;
  for (int round = 0; round < rounds; ++round) {
    int *old = round % 2 ? odd : even, *now = round % 2 ? even : odd;
#ifndef WITHOUT_CLUSTER_BARRIER
    CLUSTER_ARRIVE;
    const int twice = 2 * old[thread];
    CLUSTER_WAIT;
#else
    const int twice = 2 * old[thread];
#endif
    now[thread] = twice + at_rank(old, next)[thread];
  }
#ifndef LEAVE_EARLY
  CLUSTER_ARRIVE;
  CLUSTER_WAIT;
#endif
  mine = (rounds % 2 ? odd : even)[thread];
}

// out (block of the grid, rank, 4): what each block reads of the others.
__global__ void introduce(int* out) {
  int* mine = reinterpret_cast<int*>(dynamic_shared);
  const uint3 place = cuda_host::cluster_block();
  const int rank = cuda_host::cluster_rank(), blocks = cuda_host::cluster_blocks();
  const int own[] = {int(blockIdx.x), int(blockIdx.y), int(blockIdx.z),
                     int(place.x + 10 * place.y + 100 * place.z + 1000 * rank)};
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = threadIdx.x;
  if (thread < 4) mine[thread] = own[thread];
  CLUSTER_ARRIVE;
  CLUSTER_WAIT;
  for (int other = 0; thread < 4 && other < blocks; ++other)
    out[(block * blocks + other) * 4 + thread] = at_rank(mine, other)[thread];
  CLUSTER_ARRIVE;
  CLUSTER_WAIT;
}

enum ClusterRule {  // in the order of CLUSTER_RULES in the test
  lawful,
  one_at_another_barrier,
  arrives_twice,
  does_not_arrive,
  rank_too_large,
  not_shared,
  race_in_cluster,
};

// Block 40. Some threads take no part in barriers, or leave between arrive and wait.
__global__ void break_cluster_rule(int broken, int* out) {
  const unsigned rank = cuda_host::cluster_rank();
  const int thread = threadIdx.x;
  if (thread == 7 && rank > 0) return;
  if (broken == one_at_another_barrier && thread == 3 && rank == 1) __syncthreads();
  if (broken == race_in_cluster && thread == 0 && rank >= 2) out[0] = rank;
  if (thread == 39 && rank == 3) out[blockIdx.x] = 1;
  if (broken != does_not_arrive) CLUSTER_ARRIVE;
  if (broken == arrives_twice) CLUSTER_ARRIVE;
  if (thread == 8) return;
  CLUSTER_WAIT;
  if (rank > 0) return;
  if (broken == rank_too_large) at_rank(dynamic_shared, 4);
  if (broken == not_shared) at_rank(out, 1);
  CLUSTER_ARRIVE;
  CLUSTER_WAIT;
  if (thread == 0) out[blockIdx.x] = out[blockIdx.x + 3];
}
