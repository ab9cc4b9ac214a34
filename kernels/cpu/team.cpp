// A pool of threads of our own, without a runtime that others in the process may have, too (OpenMP).
//
// Who waits spins for some microseconds, which is what a phase of a step takes, and then sleeps. A
// worker serves one call at a time, so that any number of Python threads may train at once; between
// two calls it waits in `idle`. A forked child has none of its parent's threads: it starts anew.
#include "team.h"

#include <pthread.h>
#include <stdlib.h>

namespace {

template <class N> N read(N& x) { return __atomic_load_n(&x, __ATOMIC_SEQ_CST); }
template <class N> void write(N& x, N value) { __atomic_store_n(&x, value, __ATOMIC_SEQ_CST); }

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

constexpr int SPINS = 1000;

// A number that threads wait for to change.
struct Signal {
  unsigned value = 0;
  int sleepers = 0;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

  void set(unsigned to) {
    write(value, to);
    if (read(sleepers) == 0) return;  // whoever goes to sleep now looks at the value again
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
  }

  void wait_while(unsigned old) {
    for (int i = 0; i < SPINS; ++i) {
      if (read(value) != old) return;
      pause();
    }
    pthread_mutex_lock(&mutex);
    __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (read(value) == old) pthread_cond_wait(&changed, &mutex);
    __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex);
  }
};

// Both are never freed but used again: who has signalled may still look for sleepers when the other
// has gone on.
struct Call {
  Call* next;  // in `unused`
  void (*work)(void*, int);
  void* argument;
  int running;      // workers that are not done
  unsigned served;  // how many calls this was used for
  Signal done;
};

struct Worker {
  Worker* next;  // in `idle`, or of a call
  Call* call;
  int thread;
  unsigned served;
  Signal called;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Worker* idle = nullptr;
Call* unused = nullptr;
bool watches_forks = false;

void in_child() {
  pthread_mutex_init(&lock, nullptr);
  idle = nullptr;  // they are the parent's
}

void* serve(void* argument) {
  Worker* const self = static_cast<Worker*>(argument);
  for (;;) {
    self->called.wait_while(self->served);
    ++self->served;
    Call* const call = self->call;
    call->work(call->argument, self->thread);
    const unsigned served = call->served;
    if (__atomic_sub_fetch(&call->running, 1, __ATOMIC_SEQ_CST) == 0) call->done.set(served + 1);
  }
}

template <class N> N* allocate() {
  N* const found = static_cast<N*>(malloc(sizeof(N)));
  if (found) *found = N{};
  return found;
}

template <class N> N* pop(N*& list) {
  N* const first = list;
  if (first) list = first->next;
  return first;
}

template <class N> void push(N*& list, N* one) {
  one->next = list;
  list = one;
}

// With `lock` held.
Worker* hire() {
  if (Worker* const found = pop(idle)) return found;
  Worker* const worker = allocate<Worker>();
  if (!worker) return nullptr;
  pthread_attr_t attributes;
  pthread_t thread;
  bool started = false;
  if (pthread_attr_init(&attributes) == 0) {
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    started = pthread_create(&thread, &attributes, serve, worker) == 0;
    pthread_attr_destroy(&attributes);
  }
  if (started) return worker;
  free(worker);
  return nullptr;
}

}  // namespace

bool run_on_threads(int threads, void (*work)(void*, int), void* argument) {
  if (threads <= 1) {
    work(argument, 0);
    return true;
  }
  Worker* workers = nullptr;
  pthread_mutex_lock(&lock);
  if (!watches_forks) watches_forks = pthread_atfork(nullptr, nullptr, in_child) == 0;
  Call* call = pop(unused);
  if (!call) call = allocate<Call>();
  int hired = 0;
  while (call && watches_forks && hired < threads - 1) {
    Worker* const worker = hire();
    if (!worker) break;
    push(workers, worker);
    ++hired;
  }
  const bool complete = call && hired == threads - 1;
  if (!complete) {
    while (Worker* const worker = pop(workers)) push(idle, worker);
    if (call) push(unused, call);
  }
  pthread_mutex_unlock(&lock);
  if (!complete) return false;

  call->work = work;
  call->argument = argument;
  call->running = hired;
  const unsigned served = call->served;
  int thread = 0;
  for (Worker* worker = workers; worker; worker = worker->next) {
    worker->call = call;
    worker->thread = ++thread;
    worker->called.set(worker->called.value + 1);
  }
  work(argument, 0);
  call->done.wait_while(served);
  call->served = served + 1;

  pthread_mutex_lock(&lock);
  while (Worker* const worker = pop(workers)) push(idle, worker);
  push(unused, call);
  pthread_mutex_unlock(&lock);
  return true;
}

// ------------------------------------------------------------------------------------------- teams

struct alignas(64) Barrier {
  int arrived;
  Signal passed;
};

Barrier* make_barriers(int teams) {
  void* found = nullptr;
  if (posix_memalign(&found, 64, sizeof(Barrier) * size_t(teams)) != 0) return nullptr;
  for (int i = 0; i < teams; ++i) static_cast<Barrier*>(found)[i] = Barrier{};
  return static_cast<Barrier*>(found);
}

Barrier* barrier_of(Barrier* barriers, int team) { return barriers + team; }
void free_barriers(Barrier* barriers) { free(barriers); }

void meet(const Team& team) {
  if (team.threads == 1) return;
  Barrier& barrier = *team.barrier;
  const unsigned passed = read(barrier.passed.value);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_SEQ_CST) == team.threads) {
    write(barrier.arrived, 0);
    barrier.passed.set(passed + 1);
  } else {
    barrier.passed.wait_while(passed);
  }
}

int next_member(const Team& team, int thread) {
  if (thread == 0) write(*team.member, __atomic_fetch_add(team.unclaimed, 1, __ATOMIC_SEQ_CST));
  meet(team);
  const int found = read(*team.member);
  meet(team);  // all have read it before it is written again
  return found;
}
