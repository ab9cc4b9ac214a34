// All that computes, for one level of a processor's instructions: LEVEL names it.
#include "level.h"

#include "pass.h"

namespace {

template <class T> size_t bytes_of(const AbiNetwork& network, const AbiMember& member, int threads) {
  return Memory<T>(Arena{nullptr}, network, member, threads, 0).bytes;
}

size_t bytes(const AbiNetwork& network, const AbiMember& member, int threads) {
  return network.itemsize == 4 ? bytes_of<float>(network, member, threads)
                               : bytes_of<double>(network, member, threads);
}

template <class T> void train_as(const AbiJob& job, const Team& team, int thread) {
  for (int i; (i = next_member(team, thread)) < job.count;) {
    const AbiMember& member = job.members[i];
    const Arena arena{static_cast<char*>(member.memory)};
    const Memory<T> memory(arena, *job.network, member, team.threads, thread);
    Epoch<T>{*job.network, member, team, thread, memory, job.X, static_cast<const T*>(job.Y)}.run(
        job.first, job.last, job.every_call, Part(job.part), job.layer);
  }
}

void train(const AbiJob& job, const Team& team, int thread) {
  if (job.network->itemsize == 4) train_as<float>(job, team, thread);
  else train_as<double>(job, team, thread);
}

template <class T> void layers_of(const AbiNetwork& network, int64_t* starts) {
  for (int l = 0; l < network.depth; ++l) {
    const AbiLayer& layer = network.layers[l];
    starts[l + 1] = starts[l] + units_of(layer.neurons, W<T>) * W<T> * (layer.inputs + 1);
  }
}

void layers(const AbiNetwork& network, int64_t* starts) {
  if (network.itemsize == 4) layers_of<float>(network, starts);
  else layers_of<double>(network, starts);
}

size_t pass_bytes(const AbiPass& pass) {
  return pass.network->itemsize == 4 ? Pass<float>{pass}.bytes() : Pass<double>{pass}.bytes();
}

void run_pass(const AbiPass& pass, const Team& team, int thread) {
  if (pass.network->itemsize == 4) Pass<float>{pass}.run(team, thread);
  else Pass<double>{pass}.run(team, thread);
}

#define NAME_OF(level) NAME(level)
#define NAME(level) #level
#define TABLE_OF(level) TABLE(level)
#define TABLE(level) backprop_cpu_##level

}  // namespace

extern const Level TABLE_OF(LEVEL);
const Level TABLE_OF(LEVEL) = {NAME_OF(LEVEL), has_fma, bytes, layers, train, pass_bytes, run_pass};
