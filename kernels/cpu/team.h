// Threads that work on one job, and wait for each other.
#pragma once
#include <stdint.h>

struct Barrier;

// Those that work on one network together.
struct Team {
  int threads;
  Barrier* barrier;
  int* member;    // that the team is at
  int* unclaimed;  // the first member that no team has taken: all teams' own
};

// Until all threads of the team are here. What one wrote before, all see behind it.
void meet(const Team& team);

// Takes the next member for the team; all its threads call this, and get the same.
int next_member(const Team& team, int thread);

// work(argument, thread) on so many threads, of which the caller is thread 0; back when all are
// done. False, and nothing has run, if the system has no more threads.
bool run_on_threads(int threads, void (*work)(void*, int), void* argument);

// A barrier for each of so many teams; null if there is no memory.
Barrier* make_barriers(int teams);
Barrier* barrier_of(Barrier* barriers, int team);
void free_barriers(Barrier* barriers);
