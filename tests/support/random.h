// Numbers that are the same on every machine.
#pragma once
#include <stdint.h>

struct Random {
  uint64_t state = 1;
  double next() {  // in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double(int64_t(state)) / 9223372036854775808.0;
  }
};
