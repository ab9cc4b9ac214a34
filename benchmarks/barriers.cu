#include "primitives/cluster.cuh"

// Barriers of a cluster and nothing else: what one of them takes.
template <int CLUSTER> __global__ void CLUSTER_OF(CLUSTER) cluster_barriers(int count) {
  for (int i = 0; i < count; ++i) cluster_barrier();
}
