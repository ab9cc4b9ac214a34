// Ten trainings of the CPU's engine, each a line with a hash of its weights, state and costs: the same
// on every machine that rounds a multiply-add once. -DLEVEL_TABLE=backprop_cpu_v3 names the level.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "level.h"
#include "random.h"

extern const Level LEVEL_TABLE;

namespace {

constexpr int ROWS = 45, LAYERS = 3;

struct Hash {
  uint64_t value = 14695981039346656037u;
  void add(const void* data, size_t size) {
    for (size_t i = 0; i < size; ++i)
      value = (value ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  }
};

struct Training {
  int itemsize, sigma, output, cost, rule;
  double l2, clip_norm;
  int sizes[LAYERS + 1];
  int32_t slices[LAYERS] = {1, 1, 1};
};

const Training TRAININGS[] = {
    {4, 0, 0, 0, 0, 0, INFINITY, {37, 20, 9, 5}},      // sigmoid, quadratic, SGD
    {8, 0, 0, 1, 1, 0, INFINITY, {37, 20, 9, 5}},      // binary cross entropy, momentum
    {4, 2, 10, 2, 3, 0, INFINITY, {300, 33, 16, 10}, {16, 2, 4}},  // relu, softmax, Adam
    {8, 1, 10, 2, 4, 0, 0.5, {300, 33, 16, 10}, {4, 1, 2}},        // tanh, AdamW, norm clipped
    {4, 5, 8, 0, 2, 0.1, INFINITY, {17, 48, 31, 2}},   // gelu, identity, Nesterov, L2
    {8, 5, 8, 0, 3, 0, INFINITY, {17, 48, 31, 2}},
    {4, 6, 9, 3, 0, 0, 0.1, {9, 15, 17, 3}, {2, 1, 4}},            // silu, exponential, Poisson
    {8, 4, 7, 0, 0, 0.2, INFINITY, {9, 15, 17, 3}},    // elu, softplus
    {4, 7, 10, 1, 3, 0, INFINITY, {5, 64, 16, 18}},    // softplus, softmax, binary
    {8, 3, 10, 0, 1, 0, INFINITY, {5, 64, 16, 18}, {1, 8, 2}},     // leaky relu, softmax, quadratic
};

int64_t aligned(int64_t count) { return (count + 31) / 32 * 32; }

template <class T> uint64_t run(const Training& training, int threads, int block, bool by_inputs) {
  Random random;
  AbiLayer layers[LAYERS] = {};
  int64_t length = 0;
  for (int l = 0; l < LAYERS; ++l) {
    layers[l].inputs = training.sizes[l];
    layers[l].neurons = training.sizes[l + 1];
    layers[l].sigma = l == LAYERS - 1 ? training.output : training.sigma;
    layers[l].from_z = layers[l].sigma == 5 || layers[l].sigma == 6;
    layers[l].w_at = length;
    length += aligned(int64_t(layers[l].inputs) * layers[l].neurons);
  }
  for (int l = 0; l < LAYERS; ++l) {
    layers[l].b_at = length;
    length += aligned(layers[l].neurons);
  }
  const int inputs = training.sizes[0], outputs = training.sizes[LAYERS], batch = 11;
  const int steps = (ROWS + batch - 1) / batch;
  const auto array = [](size_t count) { return static_cast<T*>(calloc(count, sizeof(T))); };
  T *const X = array(ROWS * inputs), *const Y = array(ROWS * outputs), *const p = array(length);
  T* const state[2] = {array(length), array(length)};
  for (int i = 0; i < ROWS * inputs; ++i) X[i] = T(random.next());
  for (int i = 0; i < ROWS * outputs; ++i) Y[i] = T(0.5 + 0.4 * random.next()) / T(outputs);
  for (int64_t i = 0; i < length; ++i) p[i] = T(0.3 * random.next());
  for (int l = 0; l < LAYERS; ++l)  // what lies between is 0
    for (int64_t i = int64_t(layers[l].inputs) * layers[l].neurons; i % 32; ++i)
      p[layers[l].w_at + i] = T(0);
  int64_t order[ROWS];
  for (int i = 0; i < ROWS; ++i) order[i] = (i * 7) % ROWS;
  double coefficients[20 * 6], costs[20], squares[20];
  for (int i = 0; i < steps; ++i) {
    const double row[6] = {0.05, 0.01, 1.0 + 0.1 * i, 0.001, training.l2, 0};
    memcpy(coefficients + 6 * i, row, sizeof(row));
  }
  const bool adam = training.rule >= 3, collapses = (training.output == 0 && training.cost == 1) ||
                    (training.output == 10 && training.cost == 2) ||
                    (training.output == 8 && training.cost == 0) ||
                    (training.output == 9 && training.cost == 3);
  AbiNetwork network = {};
  network.itemsize = network.stored = training.itemsize;
  network.depth = LAYERS;
  network.cost = training.cost;
  network.collapses = network.from_z = collapses;
  network.low = training.cost == 0 ? -INFINITY : sizeof(T) == 4 ? 1.17549435e-38 : 2.2250738585072014e-308;
  network.high = training.cost != 1 ? INFINITY : sizeof(T) == 4 ? 0.99999994 : 0.99999999999999989;
  network.layers = layers;
  AbiMember member = {};
  member.batch = batch;
  member.block = block;
  member.in_place = member.by_inputs = by_inputs;
  member.rule = training.rule;
  member.rows = ROWS;
  member.epochs = member.shards = member.end_shard = 1;
  member.order = order;
  member.coefficients = coefficients;
  member.clip_value = member.max_norm = INFINITY;
  member.clip_norm = training.clip_norm;
  member.d1 = adam ? 0.1 : 0.9;
  member.d2 = adam ? 0.001 : 0;
  member.epsilon = adam ? 1e-3 : 0;
  member.slices = training.slices;
  member.p = p;
  for (int i = 0; i < 2; ++i) member.state[i] = (adam || i < (training.rule > 0)) ? state[i] : nullptr;
  member.costs = costs;
  member.squares = squares;
  const size_t bytes = LEVEL_TABLE.bytes(network, member, threads);
  member.memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  memset(member.memory, 0xfe, bytes);  // nothing is read before it is written
  AbiJob job = {&network, X, Y, &member, 1, 1, threads, 0, WHOLE, 0, 0, steps};
  int claimed = 0, unclaimed = 0;
  struct Work {
    const AbiJob& job;
    Team team;
  } work = {job, {threads, make_barriers(1), &claimed, &unclaimed}};
  const bool ran = run_on_threads(
      threads,
      [](void* argument, int thread) {
        const Work& work = *static_cast<const Work*>(argument);
        LEVEL_TABLE.train(work.job, work.team, thread);
      },
      &work);
  if (!ran) exit(1);
  Hash hash;
  hash.add(p, sizeof(T) * size_t(length));
  for (T* slot : state) hash.add(slot, sizeof(T) * size_t(length));
  hash.add(costs, sizeof(double) * size_t(steps));
  hash.add(squares, sizeof(double) * size_t(steps));
  free_barriers(work.team.barrier);
  void* const all[] = {X, Y, p, state[0], state[1], member.memory};
  for (void* memory : all) free(memory);
  return hash.value;
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? atoi(arguments[1]) : 1, block = count > 2 ? atoi(arguments[2]) : 11;
  const bool by_inputs = count > 3;
  for (const Training& training : TRAININGS)
    printf("%016llx\n", (unsigned long long)(training.itemsize == 4
                                                 ? run<float>(training, threads, block, by_inputs)
                                                 : run<double>(training, threads, block, by_inputs)));
}
