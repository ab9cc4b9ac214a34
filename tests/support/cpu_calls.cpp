// Calls of the CPU's library, as Python makes them. Each line is a group of them and a hash of what
// they wrote. A call that is shared out to threads in another way must write the same bits; where it
// does not, the program says so and exits with 1. "forks" as an argument asks for a fork, too.
//
// Built with -Dpthread_create=create_thread -Dposix_memalign=take_memory, so that the system can run
// out of threads and memory.
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "level.h"
#include "random.h"

#define STRING_OF(name) STRING(name)
#define STRING(name) #name

#if defined(__x86_64__)  // library.cpp knows three, and one is built
#define ABSENT(name) extern const Level backprop_cpu_##name __attribute__((weak)); \
  const Level backprop_cpu_##name = {#name, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
ABSENT(v2)
ABSENT(v3)
ABSENT(v4)
#endif

extern "C" {
int backprop_cpu_abi(void);
void backprop_cpu_sizes(int64_t sizes[5]);
const char* backprop_cpu_level(int number);
int backprop_cpu_runs(int number);
int backprop_cpu_fma(int number);
size_t backprop_cpu_bytes(int, const AbiNetwork*, const AbiMember*, int);
size_t backprop_cpu_pass_bytes(int, const AbiPass*);
void backprop_cpu_layers(int, const AbiNetwork*, int64_t*);
int backprop_cpu_train(int, const AbiJob*);
int backprop_cpu_pass(int, const AbiPass*, const AbiOpenMP*);

#undef pthread_create
#undef posix_memalign
int posix_memalign(void**, size_t, size_t);
static thread_local bool has_memory = true;
int take_memory(void** found, size_t alignment, size_t size) {
  return has_memory ? posix_memalign(found, alignment, size) : ENOMEM;
}
int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
static thread_local int threads_left = -1;
int create_thread(pthread_t* thread, const pthread_attr_t* attributes, void* (*work)(void*),
                  void* argument) {
  if (threads_left == 0) return EAGAIN;
  threads_left -= threads_left > 0;
  return pthread_create(thread, attributes, work, argument);
}
}

namespace {

int level = -1;

// Threads as OpenMP hands them out: where many are asked for, fewer.
thread_local int openmp_thread = 0, openmp_threads = 1;
struct Region {
  void (*work)(void*);
  void* argument;
  int thread, threads;
};
void* in_region(void* region) {
  const Region& mine = *static_cast<const Region*>(region);
  openmp_thread = mine.thread, openmp_threads = mine.threads;
  mine.work(mine.argument);
  openmp_thread = 0, openmp_threads = 1;
  return nullptr;
}
void parallel(void (*work)(void*), void* argument, unsigned asked, unsigned) {
  const int threads = asked > 2 ? int(asked) - 1 : int(asked);
  std::vector<Region> regions;
  for (int i = 0; i < threads; ++i) regions.push_back({work, argument, i, threads});
  std::vector<pthread_t> others(size_t(threads - 1));
  for (size_t i = 0; i < others.size(); ++i)
    if (pthread_create(&others[i], nullptr, in_region, &regions[i + 1])) exit(1);
  in_region(&regions[0]);
  for (pthread_t other : others) pthread_join(other, nullptr);
}
const AbiOpenMP OPENMP = {parallel, [] { return openmp_thread; }, [] { return openmp_threads; }};
const AbiOpenMP* openmp = nullptr;

void demand(bool holds, const char* what, const char* of = "") {
  if (holds) return;
  printf("FAILED: %s %s\n", what, of);
  exit(1);
}

struct Hash {
  uint64_t value = 14695981039346656037u;
  template <class N> void add(const std::vector<N>& numbers) {
    for (N one : numbers) {
      if (one != one) one = N(NAN);  // a NaN's sign is the processor's affair
      unsigned char bytes[sizeof(N)];
      memcpy(bytes, &one, sizeof(N));
      for (unsigned char byte : bytes) value = (value ^ byte) * 1099511628211u;
    }
  }
};

// A user's functions. C's are of rows that lie one after the other.
template <class T> void users_value(const void* z, void* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T one = static_cast<const T*>(z)[i];
    static_cast<T*>(out)[i] = one / (1 + one * one);
  }
}
template <class T> void users_slope(const void* z, void* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T one = static_cast<const T*>(z)[i], d = 1 + one * one;
    static_cast<T*>(out)[i] = (1 - one * one) / (d * d);
  }
}
template <class T>
void users_samples(const void* a, const void* y, void* out, int64_t rows, int64_t columns) {
  for (int64_t x = 0; x < rows; ++x) {
    T sum = 0;
    for (int64_t j = x * columns; j < (x + 1) * columns; ++j) {
      const T d = static_cast<const T*>(a)[j] - static_cast<const T*>(y)[j];
      sum += d * d * d * d;
    }
    static_cast<T*>(out)[x] = sum;
  }
}
template <class T>
void users_gradient(const void* a, const void* y, void* out, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < rows * columns; ++j) {
    const T d = static_cast<const T*>(a)[j] - static_cast<const T*>(y)[j];
    static_cast<T*>(out)[j] = 4 * d * d * d;
  }
}

struct Settings {
  std::vector<int> sizes = {11, 20, 9, 3};
  int sigma = 0, output = 0, cost = 0;  // -1 is a user's
  int rule = 0, batch = 11, rows = 45, epochs = 1, shards = 1;
  double clip_value = INFINITY, clip_norm = INFINITY, max_norm = INFINITY;
  double l1 = 0, l2 = 0, alpha = 0;
  bool bytes = false, squares = false, weights = false;
  bool zeros = false, sparse = false;  // X has many zeros, and leaves them out
  double scale = 0.3;  // of the parameters
  uint64_t seed = 1;
};

// How a training is shared out. `piece` steps are a call; 0 is all of them.
struct Way {
  int threads, block;
  bool in_place = false, by_inputs = false;
  int piece = 0;
  bool every_call = false;
  bool without_memory = false;  // for what a call needs
  int rank = 0, ranks = 1;
};
const Way WAYS[] = {{1, 1000},
                    {1, 4, true},
                    {2, 3},
                    {5, 1, false, false, 1},
                    {3, 5, true, false, 2, true},
                    {2, 7, true, true},
                    {3, 1, true, true, 3}};

int64_t aligned(int64_t count) { return (count + 31) / 32 * 32; }

// A network and its data. All arrays end where their memory does.
template <class T> struct Problem {
  const Settings settings;
  std::vector<AbiLayer> layers;
  AbiNetwork network = {};
  double constants[3] = {0.5, 0.3, 0.9};  // δ, γ or q
  int64_t length = 0;
  std::vector<T> X, Y, p, values, weights;
  std::vector<uint8_t> bytes;
  std::vector<int64_t> starts{0};
  std::vector<int32_t> columns;
  AbiSparse sparse = {};

  explicit Problem(const Settings& given) : settings(given) {
    const int depth = int(settings.sizes.size()) - 1, outputs = settings.sizes.back();
    for (int l = 0; l < depth; ++l) {
      AbiLayer layer = {};
      layer.inputs = settings.sizes[size_t(l)];
      layer.neurons = settings.sizes[size_t(l) + 1];
      layer.sigma = l == depth - 1 ? settings.output : settings.sigma;
      layer.from_z = layer.sigma == 5 || layer.sigma == 6 || layer.sigma < 0;
      layer.value = users_value<T>;
      layer.derivative = users_slope<T>;
      layer.w_at = length;
      length += aligned(int64_t(layer.inputs) * layer.neurons);
      layers.push_back(layer);
    }
    for (AbiLayer& layer : layers) {
      layer.b_at = length;
      length += aligned(layer.neurons);
    }
    Random random{settings.seed};
    for (int i = 0; i < settings.rows * settings.sizes[0]; ++i) {
      X.push_back(settings.bytes ? T(int(128 + 127 * random.next())) : T(random.next()));
      if (settings.bytes) bytes.push_back(uint8_t(X.back()));
      if (settings.zeros && random.next() > -0.4) X.back() = T(0);
      if (X.back() != T(0)) values.push_back(X.back()), columns.push_back(i % settings.sizes[0]);
      if ((i + 1) % settings.sizes[0] == 0) starts.push_back(int64_t(values.size()));
    }
    sparse = {starts.data(), columns.data(), values.data()};
    for (int i = 0; i < settings.rows * outputs; ++i)
      Y.push_back(T(0.5 + 0.4 * random.next()) / T(outputs));
    p.assign(size_t(length), T(0));
    for (const AbiLayer& layer : layers) {
      for (int64_t i = 0; i < int64_t(layer.inputs) * layer.neurons; ++i)
        p[size_t(layer.w_at + i)] = T(settings.scale * random.next());
      for (int64_t i = 0; i < layer.neurons; ++i)
        p[size_t(layer.b_at + i)] = T(settings.scale * random.next());
    }
    for (int i = 0; i < settings.rows; ++i) weights.push_back(i % 4 ? T(1 + 0.9 * random.next()) : T(settings.rows > 1 ? 0 : 0.75));
    const int output = settings.output, cost = settings.cost;
    network.itemsize = sizeof(T);
    network.depth = depth;
    network.cost = cost;
    network.collapses = (output == 0 && cost == 1) || (output == 10 && cost == 2) ||
                        (output == 8 && cost == 0) || (output == 9 && cost == 3);
    network.from_z = network.collapses && cost != 0;
    const bool single = sizeof(T) == 4;
    const bool unit = cost == 1 || cost == 9 || cost == 10, positive = unit || cost == 2 || cost == 3;
    network.low = !positive ? -INFINITY : single ? 1.17549435e-38 : 2.2250738585072014e-308;
    network.high = !unit ? INFINITY : single ? 0.99999994 : 0.99999999999999989;
    network.constants = constants;
    network.count = cost == 6 ? 3 : 1;
    network.layers = layers.data();
    network.samples = users_samples<T>;
    network.gradient = users_gradient<T>;
  }

  const void* stored(bool as_bytes) {
    if (settings.sparse) {
      network.stored = 0;
      return &sparse;
    }
    network.stored = as_bytes ? 1 : int(sizeof(T));
    return as_bytes ? static_cast<const void*>(bytes.data()) : X.data();
  }
};

// What a training of one network reads and writes.
template <class T> struct Training {
  const Settings settings;
  AbiMember member = {};
  std::vector<int64_t> order;
  std::vector<int32_t> slices;
  std::vector<double> coefficients, costs, squares;
  std::vector<T> weights;  // in the order of the rows, of mean 1 in a mini-batch
  std::vector<T> p, state[2];
  std::vector<int64_t> layers;  // where each begins in a gradient
  std::unique_ptr<char, void (*)(void*)> memory{nullptr, free}, gradient{nullptr, free};

  Training(const Problem<T>& problem, const Settings& given, const Way& way) : settings(given) {
    const int steps = (settings.rows + settings.batch - 1) / settings.batch * settings.epochs;
    for (int i = 0; i < settings.epochs * settings.rows; ++i)
      order.push_back((i % settings.rows * 7 + 3 + i / settings.rows) % settings.rows);
    const int steps_of_epoch = steps / settings.epochs;
    for (int i = 0; i < steps; ++i) {
      const int epoch = i / steps_of_epoch, first = i % steps_of_epoch * settings.batch;
      const int end = first + settings.batch < settings.rows ? first + settings.batch : settings.rows;
      const int64_t* const rows = order.data() + epoch * settings.rows;
      double total = 0;
      for (int x = first; x < end; ++x)
        total += settings.weights ? double(problem.weights[size_t(rows[x])]) : 1.0;
      for (int x = first; settings.weights && x < end; ++x)
        weights.push_back(T(double(problem.weights[size_t(rows[x])]) * (end - first) / total));
      const double l2 = settings.l2 + settings.alpha / total;
      for (double one : {0.05, 0.01, 1.0 + 0.1 * i, 0.001, l2, 0.0}) coefficients.push_back(one);
    }
    if (settings.weights) member.weights = weights.data();
    const bool adam = settings.rule >= 3;
    costs.assign(size_t(steps * settings.shards), 0);
    if (settings.squares) squares.assign(size_t(steps), 0);
    p = problem.p;
    for (T& one : p) one *= T(1) + T(settings.seed) / 8;
    for (int i = 0; i < 2; ++i)
      if (adam || i < (settings.rule > 0)) state[i].assign(p.size(), T(0));
    member.batch = settings.batch;
    member.block = way.block < settings.batch ? way.block : settings.batch;
    member.in_place = (way.in_place && !settings.bytes) || settings.sparse;
    member.by_inputs = way.by_inputs && !settings.bytes && !settings.sparse;
    member.shards = settings.shards;
    member.first_shard = way.rank * settings.shards / way.ranks;
    member.end_shard = (way.rank + 1) * settings.shards / way.ranks;
    if (way.ranks > 1) {  // as many trees as there could be
      layers.resize(settings.sizes.size());
      backprop_cpu_layers(level, &problem.network, layers.data());
      void* found = nullptr;
      const size_t size = size_t(layers.back() * settings.shards) * sizeof(T);
      demand(posix_memalign(&found, 64, size) == 0, "memory");
      memset(found, 0xfe, size);
      gradient.reset(static_cast<char*>(found));
      member.gradient = found;
    }
    member.rule = settings.rule;
    member.rows = settings.rows;
    member.epochs = settings.epochs;
    member.order = order.data();
    member.coefficients = coefficients.data();
    member.clip_value = settings.clip_value;
    member.clip_norm = settings.clip_norm;
    member.max_norm = settings.max_norm;
    member.l1 = settings.l1;
    member.d1 = adam ? 0.1 : 0.9;
    member.d2 = adam ? 0.001 : 0;
    member.epsilon = adam ? 1e-3 : 0;
    for (size_t l = 1; l < settings.sizes.size(); ++l) slices.push_back(l == 1 ? 3 : 1 + int(l % 2));
    member.slices = slices.data();
    member.p = p.data();
    for (int i = 0; i < 2; ++i) member.state[i] = state[i].empty() ? nullptr : state[i].data();
    member.costs = costs.data();
    member.squares = squares.empty() ? nullptr : squares.data();
    const size_t size = backprop_cpu_bytes(level, &problem.network, &member, way.threads);
    void* found = nullptr;
    demand(posix_memalign(&found, 64, size) == 0, "memory");
    memset(found, 0xfe, size);  // nothing is read before it is written
    memory.reset(static_cast<char*>(found));
    member.memory = found;
  }

  int64_t steps() const { return int64_t(costs.size()) / settings.shards; }

  uint64_t hash() const {
    Hash hash;
    hash.add(p);
    for (const auto& slot : state) hash.add(slot);
    hash.add(costs);
    hash.add(squares);
    return hash.value;
  }
};

// The hash of what a training wrote; 0 if there were no threads for it, and nothing was written.
template <class T> uint64_t train(const Settings& settings, const Way& way) {
  Problem<T> problem(settings);
  Training<T> training(problem, settings, way);
  const uint64_t before = training.hash();
  const void* const X = problem.stored(settings.bytes);
  AbiJob job = {&problem.network, X, problem.Y.data(), &training.member, 1, 1, way.threads,
                way.every_call, WHOLE, 0, 0, 0};
  const int64_t steps = training.steps(), piece = way.piece ? way.piece : steps + 5;
  for (; job.first < steps; job.first = job.last) {
    job.last = job.first + piece;
    has_memory = !way.without_memory;
    const int failed = backprop_cpu_train(level, &job);
    has_memory = true;
    if (!failed) continue;
    demand(training.hash() == before, "something was written");
    return 0;
  }
  return training.hash();
}

// The same, each epoch by a call of its own.
template <class T> uint64_t train_by_epochs(const Settings& settings, const Way& way) {
  Problem<T> problem(settings);
  Training<T> training(problem, settings, way);
  AbiMember& member = training.member;
  AbiJob job = {&problem.network, problem.stored(settings.bytes), problem.Y.data(), &member, 1, 1,
                way.threads, 0, WHOLE, 0, 0, training.steps() / settings.epochs};
  member.epochs = 1;
  for (int i = 0; i < settings.epochs; ++i) {
    demand(backprop_cpu_train(level, &job) == 0, "no threads");
    member.order += settings.rows;
    member.coefficients += 6 * job.last;
    member.costs += job.last * settings.shards;
    if (member.weights) member.weights = static_cast<const T*>(member.weights) + settings.rows;
    if (member.squares) member.squares += job.last;
  }
  return training.hash();
}

// Adds up, number by number, what ranks have of a layer: the sums of their trees.
template <class T> struct Leaf {
  int first, count;
  T* sums;
};
template <class T> T sum_of_tree(const std::vector<Leaf<T>>& leaves, int64_t at, int first, int count) {
  for (const Leaf<T>& leaf : leaves)
    if (leaf.first == first && leaf.count == count) return leaf.sums[at];
  const int half = count / 2;
  const T left = sum_of_tree(leaves, at, first, half);
  return left + sum_of_tree(leaves, at, first + half, half);
}

// The same on so many ranks, each of which has some of the shards, and runs its steps in parts.
template <class T> uint64_t train_on_ranks(const Settings& settings, Way way, int ranks) {
  Problem<T> problem(settings);
  std::vector<std::unique_ptr<Training<T>>> trainings;
  std::vector<AbiJob> jobs;
  std::vector<Leaf<T>> leaves;
  const void* const X = problem.stored(settings.bytes);
  way.ranks = ranks;
  for (way.rank = 0; way.rank < ranks; ++way.rank) {
    trainings.push_back(std::make_unique<Training<T>>(problem, settings, way));
    AbiMember& member = trainings.back()->member;
    jobs.push_back({&problem.network, X, problem.Y.data(), &member, 1, 1, way.threads, way.every_call,
                    0, 0, 0, 0});
    T* sums = static_cast<T*>(member.gradient);
    for (int first = member.first_shard, count; first < member.end_shard; first += count) {
      for (count = 1; first % (2 * count) == 0 && first + 2 * count <= member.end_shard;) count *= 2;
      leaves.push_back({first, count, sums});
      sums += trainings.back()->layers.back();
    }
  }
  Training<T>& whole = *trainings[0];
  const auto run = [&](Part part, int layer) {
    for (AbiJob& job : jobs) {
      job.part = part, job.layer = layer;
      demand(backprop_cpu_train(level, &job) == 0, "no threads");
    }
  };
  for (int64_t step = 0; step < whole.steps(); ++step) {
    for (AbiJob& job : jobs) job.first = step, job.last = step + 1;
    run(ROWS_OF_STEP, 0);
    for (int l = int(whole.layers.size()) - 2; l >= 0; --l) {
      run(GRADIENT, l);
      std::vector<T> sum;
      for (int64_t at = whole.layers[size_t(l)]; at < whole.layers[size_t(l) + 1]; ++at)
        sum.push_back(sum_of_tree(leaves, at, 0, settings.shards));
      for (const AbiJob& job : jobs)
        memcpy(static_cast<T*>(job.members->gradient) + whole.layers[size_t(l)], sum.data(),
               sum.size() * sizeof(T));
    }
    run(CHANGE, 0);
  }
  for (const auto& training : trainings)  // each rank has written the costs of its own shards
    for (size_t i = 0; training != trainings[0] && i < whole.costs.size(); ++i) {
      const int shard = int(i) % settings.shards;
      const bool own = training->member.first_shard <= shard && shard < training->member.end_shard;
      if (own) whole.costs[i] = training->costs[i];
      else demand(training->costs[i] == 0, "the cost of another's shard");
    }
  const uint64_t found = whole.hash();
  for (const auto& training : trainings) {
    training->costs = whole.costs;
    demand(training->hash() == found, "ranks differ");
  }
  return found;
}

template <class T> uint64_t each_way(const Settings& settings, const char* name) {
  const uint64_t alone = train<T>(settings, WAYS[0]);
  for (size_t i = 1; i < sizeof(WAYS) / sizeof(WAYS[0]); ++i)
    demand(train<T>(settings, WAYS[i]) == alone, "other bits when shared out:", name);
  return alone;
}

// Every σ, C and rule, and sizes beside the edges of strips, tiles, chunks and cuts.
template <class T> std::vector<Settings> settings_of(const char* group) {
  std::vector<Settings> found;
  const auto add = [&](auto change) {
    Settings settings;
    change(settings);
    found.push_back(settings);
  };
  if (!strcmp(group, "activations")) {
    for (int sigma = -1; sigma < 10; ++sigma)
      for (double scale : {0.3, 4.0})
        add([&](Settings& s) { s.sigma = sigma, s.scale = scale, s.batch = 9; });
  } else if (!strcmp(group, "costs")) {
    for (int output = -1; output <= 10; ++output)
      for (int cost = -1; cost < 4; ++cost)
        for (int n : {3, 16, 41})
          add([&](Settings& s) {
            s.sizes = {5, 6, n}, s.output = output, s.cost = cost, s.rows = 23, s.scale = 0.8;
          });
    for (int output : {-1, 0, 5, 8, 10})
      for (int cost = 4; cost < 13; ++cost)
        for (int n : {4, 16, 42})
          if (output != 10 || cost != 12)
            add([&](Settings& s) {
              s.sizes = {5, 6, n}, s.output = output, s.cost = cost, s.rows = 23, s.scale = 0.8;
              s.weights = n == 16;
            });
    for (uint64_t seed : {2, 3, 4, 5})  // rows whose z are all negative, too
      add([&](Settings& s) {
        s.sizes = {5, 3}, s.output = 10, s.cost = 2, s.rows = 23, s.scale = 2, s.seed = seed;
      });
  } else if (!strcmp(group, "saturated")) {  // a is 0 or 1, and z large
    for (int cost = 0; cost < 4; ++cost)
      for (int output : {0, 1, 2, 9, 10})
        add([&](Settings& s) {
          s.sizes = {5, 4}, s.output = output, s.cost = cost, s.rows = 9, s.scale = 300;
        });
  } else if (!strcmp(group, "rules")) {
    for (int rule = 0; rule < 5; ++rule)
      for (int form = 0; form < 7; ++form)
        add([&](Settings& s) {
          s.sizes = {140, 21, 3}, s.rule = rule, s.squares = form % 2;
          if (form == 1) s.l1 = 0.01;
          if (form == 2) s.l2 = 0.02;
          if (form == 3) s.clip_value = 0.003;
          if (form == 4) s.clip_norm = 0.05;
          if (form == 5) s.clip_norm = 0.05, s.clip_value = 0.003, s.l1 = 0.01, s.l2 = 0.02;
          if (form == 6) s.clip_norm = 100;
        });
    add([&](Settings& s) {  // the largest is not the last layer's
      s.sizes = {140, 21, 3}, s.sigma = s.output = 8, s.scale = 2, s.clip_norm = 0.05;
    });
    for (int n : {16, 41})  // what fills up a strip counts in no norm
      add([&](Settings& s) { s.sizes = {9, 5, n}, s.rule = 4, s.clip_norm = 0.05, s.squares = true; });
    for (double scale : {0.0, 1e30})  // norms of 0 and beyond what a square can be
      add([&](Settings& s) {
        s.sigma = s.output = 8, s.scale = scale, s.sizes = {3, 2}, s.clip_norm = 0.1;
      });
  } else if (!strcmp(group, "limits")) {
    for (double limit : {0.5, 1.0, 100.0})  // of all rows, of some and of none
      for (int rule : {0, 3})
        add([&](Settings& s) { s.sizes = {140, 21, 17, 3}, s.rule = rule, s.max_norm = limit; });
    add([&](Settings& s) { s.max_norm = 0.9, s.clip_norm = 0.05, s.squares = true, s.epochs = 2; });
    add([&](Settings& s) { s.max_norm = 0.9, s.shards = 8, s.batch = 19; });
    add([&](Settings& s) { s.max_norm = 0.9, s.zeros = s.sparse = true; });
    for (double scale : {1e25, 1e30})  // squares overflow
      add([&](Settings& s) {
        s.sigma = s.output = 8, s.scale = scale, s.sizes = {17, 2}, s.max_norm = 2e25;
      });
  } else if (!strcmp(group, "shapes")) {
    const std::vector<int> shapes[] = {{1, 1},       {1, 1, 1},       {17, 1, 3},  {300, 40, 20, 10},
                                       {33, 270, 3}, {140, 33, 16},   {8, 15, 17}, {16, 16, 16},
                                       {31, 32, 33}, {257, 129, 128}};
    for (const auto& sizes : shapes)
      add([&](Settings& s) { s.sizes = sizes, s.rows = 25; });
    for (int batch : {1, 2, 5, 6, 12, 13, 24, 25, 1000})
      add([&](Settings& s) { s.batch = batch, s.rows = 25, s.rule = 1; });
    for (int batch : {192, 193, 200})
      add([&](Settings& s) { s.batch = batch, s.rows = 390, s.sizes = {37, 18, 3}; });
    add([](Settings& s) { s.rows = 1; });
    add([](Settings& s) { s.sizes = std::vector<int>(51, 3), s.rows = 12, s.sigma = 1, s.scale = 1; });
  } else if (!strcmp(group, "weights")) {
    for (int form = 0; form < 6; ++form)
      add([&](Settings& s) {
        s.sizes = {140, 21, 3}, s.weights = true, s.batch = 10, s.rule = form % 5;
        s.cost = form == 1 ? -1 : form % 3, s.output = form == 2 ? 10 : 0;
        if (form % 2) s.alpha = 0.3, s.squares = form == 3;
        if (form == 4) s.clip_norm = 0.05, s.l2 = 0.02;
      });
    add([&](Settings& s) { s.alpha = 0.3, s.batch = 10; });
  } else if (!strcmp(group, "sparse")) {
    for (const auto& sizes : {std::vector<int>{140, 21, 3}, {9, 3}, {70, 130, 2}, {300, 17, 17, 4}})
      for (int rule : {0, 3})
        add([&](Settings& s) {
          s.sizes = sizes, s.rule = rule, s.zeros = s.sparse = true;
          if (rule) s.clip_norm = 0.05, s.weights = true;
        });
  } else if (!strcmp(group, "epochs")) {
    for (int batch : {4, 15, 100})
      for (int rule : {0, 4})
        add([&](Settings& s) {
          s.sizes = {140, 21, 3}, s.epochs = 3, s.batch = batch, s.rule = rule;
          if (rule) s.squares = s.weights = true;
        });
    add([&](Settings& s) { s.epochs = 2, s.zeros = s.sparse = true; });
  } else if (!strcmp(group, "shards")) {
    for (int shards : {2, 8, 16})
      for (int rule = 0; rule < 5; ++rule)
        add([&](Settings& s) {
          s.sizes = {140, 21, 3}, s.shards = shards, s.rule = rule, s.batch = 19;
          s.squares = s.weights = rule % 2;
          if (rule == 2) s.clip_norm = 0.01, s.clip_value = 0.03;
          if (rule == 3) s.l1 = 0.01;
        });
    for (int batch : {1, 3, 8, 29, 45})  // fewer rows than shards, and a short last batch
      add([&](Settings& s) { s.shards = 8, s.batch = batch, s.cost = 2, s.output = 10; });
    add([&](Settings& s) { s.sizes = {11, 150, 70, 3}, s.shards = 4, s.rows = 900, s.batch = 850; });
    add([&](Settings& s) { s.shards = 1 << 10, s.rows = 1100, s.batch = 1090; });
    add([&](Settings& s) { s.shards = 64, s.rows = 300, s.batch = 130; });  // as many as a tile takes
    add([&](Settings& s) { s.shards = 8, s.batch = 30, s.zeros = s.sparse = true; });
    add([&](Settings& s) { s.shards = 8, s.batch = 30, s.bytes = true; });
    add([&](Settings& s) { s.shards = 4, s.batch = 30, s.cost = -1, s.sigma = -1, s.epochs = 2; });
  } else {  // bytes
    for (int n : {1, 11, 64, 70})
      add([&](Settings& s) {
        s.sizes = {n, 9, 3}, s.bytes = true, s.scale = 0.02, s.sigma = 2, s.squares = true;
      });
  }
  return found;
}

// Memory for a pass, of which nothing is read before it is written.
template <class T> void give_memory(AbiPass& pass) {
  const size_t size = backprop_cpu_pass_bytes(level, &pass);
  demand(posix_memalign(&pass.memory, 64, size) == 0, "memory");
  memset(pass.memory, 0xfe, size);
}

// Where w^1 … w^L and b^1 … b^L begin.
template <class T> std::vector<void*> places(const Problem<T>& problem, std::vector<T>& flat) {
  std::vector<void*> found;
  for (const AbiLayer& layer : problem.layers) found.push_back(&flat[size_t(layer.w_at)]);
  for (const AbiLayer& layer : problem.layers) found.push_back(&flat[size_t(layer.b_at)]);
  return found;
}

// A flat array with each w the other way round.
template <class T> std::vector<T> turned(const Problem<T>& problem, const std::vector<T>& flat,
                                         bool back = false) {
  std::vector<T> found = flat;
  for (const AbiLayer& layer : problem.layers)
    for (int j = 0; j < layer.neurons; ++j)
      for (int k = 0; k < layer.inputs; ++k) {
        const size_t here = size_t(layer.w_at + int64_t(j) * layer.inputs + k);
        const size_t there = size_t(layer.w_at + int64_t(k) * layer.neurons + j);
        found[back ? here : there] = flat[back ? there : here];
      }
  return found;
}

// a^L of rows and C, by blocks.
template <class T> uint64_t read(const Settings& settings, int threads, int block, bool turns) {
  Problem<T> problem(settings);
  const void* const X = problem.stored(settings.bytes);
  std::vector<T> outputs(size_t(settings.rows) * size_t(settings.sizes.back()), T(0));
  std::vector<double> costs(size_t((settings.rows + block - 1) / block), 0);
  std::vector<T> p = turns ? turned(problem, problem.p) : problem.p;
  const std::vector<void*> parameters = places(problem, p);
  Hash hash;
  for (bool wants_cost : {true, false}) {
    AbiPass pass = {};
    pass.network = &problem.network;
    pass.X = X;
    pass.Y = wants_cost ? problem.Y.data() : nullptr;
    pass.x_row = settings.sizes[0];
    pass.parameters = parameters.data();
    pass.inputs_first = turns;
    pass.stage = READ;
    pass.rows = settings.rows;
    pass.threads = threads;
    pass.block = block;
    pass.in_place = !settings.bytes && block % 2;
    pass.outputs = outputs.data();
    pass.costs = wants_cost ? costs.data() : nullptr;
    if (threads > 1) give_memory<T>(pass);
    demand(backprop_cpu_pass(level, &pass, openmp) == 0, "no threads");
    free(pass.memory);
    hash.add(outputs);
  }
  hash.add(costs);
  return hash.value;
}

// C and its gradients; and the two halves of the way to them.
template <class T> struct Gradients {
  Problem<T> problem;
  const Settings& settings;
  std::vector<T> outputs, error, of_inputs, found;
  double cost = 0;

  explicit Gradients(const Settings& given) : problem(given), settings(given) {}

  uint64_t hash(bool with_cost) const {
    Hash hash;
    hash.add(found);
    if (with_cost) hash.add(std::vector<double>{cost});
    return hash.value;
  }

  uint64_t run(int threads, int block, bool in_place, bool turns, bool halves, bool inputs_error) {
    std::vector<T> p = turns ? turned(problem, problem.p) : problem.p;
    std::vector<T> gradients(p.size(), T(0));
    const std::vector<void*> parameters = places(problem, p), wanted = places(problem, gradients);
    const size_t rows = size_t(settings.rows);
    outputs.assign(rows * size_t(settings.sizes.back()), T(0));
    of_inputs.assign(inputs_error ? rows * size_t(settings.sizes[0]) : 0, T(0));
    double total = 0;
    for (T one : problem.weights) total += double(one);
    AbiPass pass = {};
    pass.network = &problem.network;
    pass.X = problem.stored(settings.bytes);
    pass.x_row = settings.sizes[0];
    pass.parameters = parameters.data();
    pass.inputs_first = turns;
    pass.rows = settings.rows;
    pass.threads = threads;
    pass.block = block < settings.rows ? block : settings.rows;
    pass.in_place = (in_place && !settings.bytes) || settings.sparse;
    pass.weights = settings.weights ? problem.weights.data() : nullptr;
    pass.total = settings.weights ? total : double(rows);
    pass.inputs_error = inputs_error ? of_inputs.data() : nullptr;
    if (!halves) {
      pass.stage = GRADIENTS;
      pass.gradients = wanted.data();
      pass.Y = problem.Y.data();
      pass.costs = &cost;
      demand(backprop_cpu_pass(level, &pass, openmp) == 0, "no threads");
    } else {
      pass.stage = FORWARD;
      pass.outputs = outputs.data();
      give_memory<T>(pass);
      demand(backprop_cpu_pass(level, &pass, openmp) == 0, "no threads");
      error = outputs;
      for (size_t i = 0; i < error.size(); ++i) error[i] -= problem.Y[i];
      pass.stage = BACKWARD;
      pass.gradients = wanted.data();
      pass.error = error.data();
      demand(backprop_cpu_pass(level, &pass, openmp) == 0, "no threads");
      free(pass.memory);
    }
    found = turns ? turned(problem, gradients, true) : gradients;
    return hash(!halves);
  }
};

template <class T> uint64_t gradients() {
  Hash hash;
  for (int form = 0; form < 14 + 12; ++form) {
    Settings settings;
    if (form >= 14) {  // a row alone: whole strips and parts of them, every kind of σ and C
      const int kind = form - 14;
      settings.sizes = kind % 2 ? std::vector<int>{64, 128, 16, 8} : std::vector<int>{70, 18, 33, 5};
      settings.rows = 1, settings.weights = kind % 3 == 0;
      settings.sigma = kind, settings.output = kind % 4 == 3 ? 10 : kind % 4 == 2 ? 5 : 0;
      settings.cost = kind % 4 == 2 ? 0 : kind % 3;
      if (kind > 9) settings.sigma = kind - 5, settings.bytes = true, settings.scale = 0.02;
      Gradients<T> row(settings);
      for (bool turns : {false, true}) {
        const uint64_t one = row.run(1, 1, kind % 2 == 0, turns, false, false);
        demand(row.run(3, 1, kind % 2 == 1, turns, false, false) == one, "other gradients of a row");
        hash.add(std::vector<double>{double(one >> 32), double(unsigned(one))});
        for (T number : row.found) demand(number == number, "a gradient of a row is NaN");
      }
      continue;
    }
    const std::vector<int> shapes[] = {{9, 4}, {70, 18, 33, 5}, {64, 128, 16, 8}};
    const int rows[] = {23, 1, 200, 5, 16, 2, 193, 17, 12, 3, 200, 23, 4, 200};
    settings.sizes = shapes[form % 3], settings.rows = rows[form];
    settings.sigma = form % 10, settings.output = form < 8 ? 0 : form - 4, settings.cost = form % 4;
    settings.weights = form % 2, settings.bytes = form == 9;
    settings.zeros = settings.sparse = form > 10;
    if (settings.bytes) settings.scale = 0.02;
    Gradients<T> passes(settings);
    // Sums over a row of w are made in lanes where rows are few, and the other way round in others.
    const bool few = settings.rows <= 16 && !settings.sparse;
    uint64_t wanted[2], halves[2];
    for (bool turns : {false, true}) {
      wanted[turns] = passes.run(1, 1000, false, turns, false, false);
      hash.add(std::vector<double>{double(wanted[turns] >> 32), double(unsigned(wanted[turns]))});
      demand(passes.run(1, 1000, false, turns, false, true) == wanted[turns],
             "other gradients beside those of the inputs");
      hash.add(passes.of_inputs);
      halves[turns] = passes.run(1, 1000, false, turns, true, false);
      hash.add(std::vector<double>{double(halves[turns] >> 32), double(unsigned(halves[turns]))});
    }
    demand(few || wanted[0] == wanted[1], "other gradients of w the other way round");
    demand(few || halves[0] == halves[1], "other halves of w the other way round");
    for (bool turns : {false, true}) {
      for (const AbiOpenMP* has : {static_cast<const AbiOpenMP*>(nullptr), &OPENMP}) {
        openmp = has;
        for (int threads : {1, 2, 3})
          demand(passes.run(threads, 2 + 3 * threads, turns, turns, false, true) == wanted[turns],
                 "other gradients when shared out");
      }
      for (int threads : {1, 3})
        demand(passes.run(threads, 7, threads == 1, turns, true, turns) == halves[turns], "other halves");
      if (settings.cost || settings.output == 10) continue;
      passes.run(1, 1000, false, turns, false, false);
      demand(passes.hash(false) == halves[turns], "halves are no whole");
    }
    openmp = nullptr;
  }
  return hash.value;
}

template <class T> uint64_t readings() {
  Hash hash;
  for (int output = -1; output <= 10; ++output)
    for (int cost = -1; cost < 4; ++cost)
      for (int block : {4, 45}) {
        Settings settings;
        settings.output = output, settings.cost = cost, settings.bytes = cost == 2;
        settings.sigma = output < 10 ? output : 4;
        if (settings.bytes) settings.scale = 0.02;
        const uint64_t alone = read<T>(settings, 1, block, false);
        for (int threads : {1, 2, 3})
          for (bool turns : {false, true})
            for (const AbiOpenMP* has : {static_cast<const AbiOpenMP*>(nullptr), &OPENMP}) {
              openmp = has;
              demand(read<T>(settings, threads, block, turns) == alone, "other outputs when shared out");
            }
        openmp = nullptr;
        hash.add(std::vector<double>{double(alone >> 32), double(unsigned(alone))});
      }
  Settings one_row;  // in lanes
  one_row.rows = 1, one_row.sizes = {70, 18, 33, 5};
  for (bool turns : {false, true}) {
    const uint64_t one = read<T>(one_row, 1, 1, turns);
    demand(read<T>(one_row, 2, 1, turns) == one, "other outputs by several threads");
    hash.add(std::vector<double>{double(one >> 32), double(unsigned(one))});
  }
  return hash.value;
}

// Members with batches, rules and orders of their own; beside each other as alone.
template <class T> uint64_t population(int teams, int threads, bool by_inputs) {
  Settings shared;
  Problem<T> problem(shared);
  std::vector<std::unique_ptr<Training<T>>> trainings;
  std::vector<AbiMember> members;
  for (int i = 0; i < 7; ++i) {
    Settings settings = shared;
    settings.rule = i % 5, settings.batch = 4 + 3 * i, settings.rows = 45 - i;
    settings.seed = uint64_t(i);
    if (i == 3) settings.clip_norm = 0.01;
    if (i == 4) settings.squares = true;
    const Way way = {threads, 1 + i, by_inputs || i % 2 == 0, by_inputs};
    trainings.push_back(std::make_unique<Training<T>>(problem, settings, way));
    members.push_back(trainings.back()->member);
  }
  AbiJob job = {&problem.network, problem.stored(false), problem.Y.data(), members.data(),
                int(members.size()), teams, threads, 0, WHOLE, 0, 0, 0};
  for (; job.last < 12; job.first = job.last) {
    job.last += 4;
    demand(backprop_cpu_train(level, &job) == 0, "no threads");
  }
  Hash hash;
  for (const auto& training : trainings) {
    hash.add(training->p);
    hash.add(training->costs);
    hash.add(training->squares);
    for (const auto& slot : training->state) hash.add(slot);
  }
  return hash.value;
}

template <class T> uint64_t populations() {
  const uint64_t alone = population<T>(1, 1, false);
  const int shared_out[][2] = {{1, 3}, {2, 1}, {3, 1}, {2, 2}, {7, 1}, {1, 4}};
  for (const auto& [teams, threads] : shared_out)
    for (bool by_inputs : {false, true})
      demand(population<T>(teams, threads, by_inputs) == alone, "other bits beside others");
  return alone;
}

// Trainings, one after the other and in several threads at once: each as alone.
void* trains_again(void* wanted) {
  Settings settings;
  settings.rule = 3;
  for (int i = 0; i < 15; ++i)
    demand(train<float>(settings, {2 + i % 3, 2, true, i % 2 == 0}) == *static_cast<uint64_t*>(wanted),
           "other bits beside another thread's");
  return nullptr;
}

void pool() {
  Settings settings;
  settings.rule = 3;
  uint64_t wanted = train<float>(settings, WAYS[0]);
  pthread_t threads[3];
  for (pthread_t& thread : threads)
    demand(pthread_create(&thread, nullptr, trains_again, &wanted) == 0, "no thread");
  for (pthread_t& thread : threads) pthread_join(thread, nullptr);
  demand(train<float>(settings, {2, 3, false, false, 0, false, true}) == 0, "without memory");
  // Before this, 9 threads were at work at most: of 12 more, some cannot be had.
  threads_left = 2;
  demand(train<float>(settings, {40, 1}) == 0, "more threads than there are");
  demand(threads_left == 0, "a thread that there is was not taken");
  demand(train<float>(settings, {4, 1}) == wanted, "other bits after a refusal");
  threads_left = -1;
  demand(train<float>(settings, {40, 1}) == wanted, "other bits on many threads");
  threads_left = 0;  // they wait, and serve again
  demand(train<float>(settings, {40, 1}) == wanted, "other bits on the same threads");
}

void in_a_fork() {
  Settings settings;
  const uint64_t wanted = train<float>(settings, {2, 3});
  threads_left = -1;
  const pid_t child = fork();
  if (child == 0) _exit(train<float>(settings, {2, 3}) == wanted ? 0 : 1);
  int status = 1;
  demand(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a forked child");
  demand(train<float>(settings, {2, 3}) == wanted, "other bits after a fork");
}

void about_itself() {
  for (int i = 0; i < 4 && backprop_cpu_level(i); ++i)
    if (!strcmp(backprop_cpu_level(i), STRING_OF(LEVEL))) level = i;
  demand(level >= 0, "it has no level", STRING_OF(LEVEL));
  int levels = 0;
  while (backprop_cpu_level(levels)) ++levels;
  demand(levels == (level ? 3 : levels) && !backprop_cpu_level(-1), "levels");
  demand(backprop_cpu_runs(level) == 1, "the processor does not run it");
  for (int beyond : {-1, levels}) demand(!backprop_cpu_runs(beyond) && !backprop_cpu_fma(beyond), "none");
  demand(backprop_cpu_fma(level) == (strcmp(STRING_OF(LEVEL), "v2") != 0), "fma");
  int64_t sizes[5];
  backprop_cpu_sizes(sizes);
  const int64_t wanted[] = {sizeof(AbiLayer), sizeof(AbiNetwork), sizeof(AbiMember),
                            sizeof(AbiPass), sizeof(AbiJob)};
  demand(!memcmp(sizes, wanted, sizeof(sizes)) && backprop_cpu_abi() == ABI_VERSION, "sizes");
}

template <class T> void groups(const char* type) {
  for (const char* group : {"activations", "costs", "saturated", "rules", "limits", "shapes", "bytes", "weights",
                            "sparse", "epochs", "shards"}) {
    Hash hash;
    for (const Settings& settings : settings_of<T>(group)) {
      const uint64_t one = each_way<T>(settings, group);
      if (settings.sparse) {
        Settings dense = settings;
        dense.sparse = false;
        demand(train<T>(dense, WAYS[0]) == one, "other bits of a sparse X");
      }
      if (settings.epochs > 1)
        demand(train_by_epochs<T>(settings, WAYS[0]) == one, "other bits epoch by epoch");
      for (int ranks : {2, 3, 7}) {
        if (ranks > settings.shards) continue;
        for (size_t way : {0, 4, 5})
          demand(train_on_ranks<T>(settings, WAYS[way], ranks) == one, "other bits on ranks:", group);
      }
      hash.add(std::vector<double>{double(one >> 32), double(unsigned(one))});
    }
    printf("%s %s %016llx\n", type, group, (unsigned long long)hash.value);
  }
  printf("%s readings %016llx\n", type, (unsigned long long)readings<T>());
  printf("%s gradients %016llx\n", type, (unsigned long long)gradients<T>());
  printf("%s populations %016llx\n", type, (unsigned long long)populations<T>());
}

}  // namespace

int main(int count, char** arguments) {
  setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  about_itself();
  groups<float>("float");
  groups<double>("double");
  if (count > 1 && !strcmp(arguments[1], "forks")) in_a_fork();
  pool();
}
