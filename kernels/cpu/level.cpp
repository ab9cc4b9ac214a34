// Compiled once a level, with LEVEL=v2, v3, v4 or neon and that level's instructions.
#include "api.h"

#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)

EXPORTED int NAMED(backprop_cpu_level_, LEVEL)() { return 1; }
