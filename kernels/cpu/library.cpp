// Compiled once, for every processor: the C ABI, the threads, and the choice of a level.
#include "api.h"

EXPORTED int backprop_cpu_version() { return 1; }
