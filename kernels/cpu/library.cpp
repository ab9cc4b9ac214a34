// What Python calls, and the choice among the levels of instructions that a processor may have.
#include <stdlib.h>
#include <string.h>

#include "level.h"

#if defined(__x86_64__)
#include <cpuid.h>
extern const Level backprop_cpu_v2, backprop_cpu_v3, backprop_cpu_v4;
#else
extern const Level backprop_cpu_neon;
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Candidate {
  const Level* level;
  bool (*runs)();
};

#if defined(__x86_64__)

// Bits of cpuid's answers, and of the registers that the system saves for a process.
struct Processor {
  unsigned basic = 0, extended7b = 0, extended = 0;  // leaf 1 ecx, leaf 7 ebx, leaf 80000001 ecx
  unsigned long long saved = 0;

  Processor() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) basic = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) extended7b = b;
    if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) extended = c;
    if (basic & bit_OSXSAVE) {
      unsigned low, high;
      __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = low | static_cast<unsigned long long>(high) << 32;
    }
  }
};

bool has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

bool runs_v2() {
  const Processor here;
  return has(here.basic, bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT |
                             bit_CMPXCHG16B);
}

bool runs_v3() {
  const Processor here;
  return runs_v2() && (here.saved & 0x6) == 0x6 &&
         has(here.basic, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE) &&
         has(here.extended7b, bit_AVX2 | bit_BMI | bit_BMI2) && has(here.extended, bit_LZCNT);
}

bool runs_v4() {
  const Processor here;
  return runs_v3() && (here.saved & 0xe6) == 0xe6 &&
         has(here.extended7b,
             bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
}

// The best first.
const Candidate candidates[] = {
    {&backprop_cpu_v4, runs_v4}, {&backprop_cpu_v3, runs_v3}, {&backprop_cpu_v2, runs_v2}};

#else

bool always() { return true; }
const Candidate candidates[] = {{&backprop_cpu_neon, always}};

#endif

// Work for teams of threads: exactly one of the two is there.
struct Run {
  const Level* level;
  const AbiJob* job;
  const AbiPass* pass;
  int threads;  // of a team
  Team* teams;
};

void work(void* argument, int number) {
  const Run& run = *static_cast<const Run*>(argument);
  const Team& team = run.teams[number / run.threads];
  if (run.job) run.level->train(*run.job, team, number % run.threads);
  else run.level->pass(*run.pass, team, number % run.threads);
}

int run_in_teams(Run run, int teams) {
  Barrier* const barriers = make_barriers(teams);
  run.teams = static_cast<Team*>(malloc(sizeof(Team) * size_t(teams)));
  int* const members = static_cast<int*>(malloc(sizeof(int) * size_t(teams)));
  int unclaimed = 0, failed = 1;
  if (barriers && run.teams && members) {
    for (int i = 0; i < teams; ++i)
      run.teams[i] = {run.threads, barrier_of(barriers, i), members + i, &unclaimed};
    failed = !run_on_threads(teams * run.threads, work, &run);
  }
  free(members);
  free(run.teams);
  free_barriers(barriers);
  return failed;
}

// A pass on the threads of OpenMP's, which may be fewer than it has memory for.
struct OnOpenMP {
  const Level* level;
  const AbiPass& pass;
  const AbiOpenMP& openmp;
  Barrier* barrier;
};

void work_on_openmp(void* argument) {
  const OnOpenMP& run = *static_cast<const OnOpenMP*>(argument);
  const Team team = {run.openmp.omp_get_num_threads(), run.barrier, nullptr, nullptr};
  run.level->pass(run.pass, team, run.openmp.omp_get_thread_num());
}

int run_on_openmp(const Level* level, const AbiPass& pass, const AbiOpenMP& openmp) {
  Barrier* const barrier = make_barriers(1);
  if (!barrier) return 1;
  OnOpenMP run{level, pass, openmp, barrier};
  openmp.GOMP_parallel(work_on_openmp, &run, unsigned(pass.threads), 0);
  free_barriers(barrier);
  return 0;
}

const Level* level_at(int number) {
  const int count = int(sizeof(candidates) / sizeof(candidates[0]));
  return 0 <= number && number < count ? candidates[number].level : nullptr;
}

}  // namespace

EXPORT int backprop_cpu_abi(void) { return ABI_VERSION; }

// The size of each structure of abi.h, in its order.
EXPORT void backprop_cpu_sizes(int64_t sizes[5]) {
  sizes[0] = sizeof(AbiLayer);
  sizes[1] = sizeof(AbiNetwork);
  sizes[2] = sizeof(AbiMember);
  sizes[3] = sizeof(AbiPass);
  sizes[4] = sizeof(AbiJob);
}

// The levels of this library, the best first: name of level `number`, or null past the last.
EXPORT const char* backprop_cpu_level(int number) {
  const Level* const level = level_at(number);
  return level ? level->name : nullptr;
}

// Whether this processor has a level's instructions, and whether it rounds a multiply-add once.
EXPORT int backprop_cpu_runs(int number) { return level_at(number) && candidates[number].runs(); }
EXPORT int backprop_cpu_fma(int number) { return level_at(number) && level_at(number)->fma; }

// Bytes of memory that a member needs where so many threads work on it.
EXPORT size_t backprop_cpu_bytes(int level, const AbiNetwork* network, const AbiMember* member,
                                 int threads) {
  return level_at(level)->bytes(*network, *member, threads);
}

// Where each layer begins in a gradient in strips, and where the last one ends: (depth + 1).
EXPORT void backprop_cpu_layers(int level, const AbiNetwork* network, int64_t* starts) {
  starts[0] = 0;
  level_at(level)->layers(*network, starts);
}

EXPORT size_t backprop_cpu_pass_bytes(int level, const AbiPass* pass) {
  return level_at(level)->pass_bytes(*pass);
}

// 0; or 1, and nothing has run, if the system has no more threads or memory for them.
EXPORT int backprop_cpu_train(int level, const AbiJob* job) {
  return run_in_teams({level_at(level), job, nullptr, job->threads, nullptr}, job->teams);
}

EXPORT int backprop_cpu_pass(int level, const AbiPass* given, const AbiOpenMP* openmp) {
  AbiPass pass = *given;
  void* own = nullptr;
  if (!pass.memory) {
    if (posix_memalign(&own, 64, level_at(level)->pass_bytes(pass)) != 0) return 1;
    pass.memory = own;
  }
  int failed = 0;
  // To make a team takes long beside a row.
  if (pass.threads == 1) level_at(level)->pass(pass, Team{1, nullptr, nullptr, nullptr}, 0);
  else if (openmp) failed = run_on_openmp(level_at(level), pass, *openmp);
  else failed = run_in_teams({level_at(level), nullptr, &pass, pass.threads, nullptr}, 1);
  free(own);
  return failed;
}
