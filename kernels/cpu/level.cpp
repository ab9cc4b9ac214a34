// All that computes, for one level of a processor's instructions: LEVEL names it.
#include "level.h"

#include "epoch.h"

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
        job.first, job.last, job.every_call);
  }
}

void train(const AbiJob& job, const Team& team, int thread) {
  if (job.network->itemsize == 4) train_as<float>(job, team, thread);
  else train_as<double>(job, team, thread);
}

// A reading as a member's part in an epoch.
AbiMember reader_of(const AbiReading& reading) {
  AbiMember reader{};
  reader.batch = reader.block = reading.block;
  reader.in_place = reading.network->stored == reading.network->itemsize;
  reader.rule = READING;
  return reader;
}

// All threads read the parameters in strips, which lie before what each has for itself.
template <class T> struct Reading {
  const AbiReading& reading;
  const AbiMember reader = reader_of(reading);
  const Memory<T> counted{Arena{nullptr}, *reading.network, reader, 1, 0};
  const size_t shared = size_t(units_of(counted.length * ptrdiff_t(sizeof(T)), 64)) * 64;

  size_t bytes() const { return shared + size_t(reading.threads) * counted.bytes; }

  void run(const Team& team, int thread) const {
    char* const begin = static_cast<char*>(reading.memory);
    const Arena own{begin + shared + size_t(thread) * counted.bytes};
    Memory<T> memory(own, *reading.network, reader, 1, 0);
    memory.p = reinterpret_cast<T*>(begin);
    const T* const Y = static_cast<const T*>(reading.Y);
    Epoch<T> epoch{*reading.network, reader, team, 0, memory, reading.X, Y};
    if (thread == 0) epoch.into_strips(static_cast<const T*>(reading.p), memory.p);
    epoch.connect();
    meet(team);
    T* const outputs = static_cast<T*>(reading.outputs);
    const int64_t blocks = units_of(reading.rows, reading.block);
    for (int64_t number = thread; number < blocks; number += team.threads) {
      const int64_t first = number * reading.block, left = reading.rows - first;
      epoch.read(first, int(left < reading.block ? left : reading.block), outputs,
                 reading.costs ? reading.costs + number : nullptr);
    }
  }
};

size_t reading_bytes(const AbiReading& reading) {
  return reading.network->itemsize == 4 ? Reading<float>{reading}.bytes()
                                        : Reading<double>{reading}.bytes();
}

void read(const AbiReading& reading, const Team& team, int thread) {
  if (reading.network->itemsize == 4) Reading<float>{reading}.run(team, thread);
  else Reading<double>{reading}.run(team, thread);
}

#define NAME_OF(level) NAME(level)
#define NAME(level) #level
#define TABLE_OF(level) TABLE(level)
#define TABLE(level) backprop_cpu_##level

}  // namespace

extern const Level TABLE_OF(LEVEL);
const Level TABLE_OF(LEVEL) = {NAME_OF(LEVEL), has_fma, bytes, train, reading_bytes, read};
