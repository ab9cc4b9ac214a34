// What Python hands over, by ctypes (backprop_gpu/engines/compiled.py has the same structures).
// T is float or double, as `itemsize` says; arrays are C-contiguous.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

enum { ABI_VERSION = 2 };

// In place of a rule: no change, but the gradient, in state[0].
enum { GRADIENT = -1 };

// A layer, of `neurons` whose inputs are those of the layer before.
struct AbiLayer {
  int32_t inputs, neurons;
  int32_t sigma;   // its number in SIGMAS (maps.h), or -1 for a user's
  int32_t from_z;  // whether σ' takes z
  int64_t w_at, b_at;  // where w and b begin in the flat arrays
  // A user's σ and σ': (z, out, count).
  void (*value)(const void*, void*, int64_t);
  void (*derivative)(const void*, void*, int64_t);
};

struct AbiNetwork {
  int32_t itemsize;  // of T
  int32_t stored;    // bytes of a number of X: itemsize, or 1 for uint8
  int32_t depth;
  int32_t cost;       // its number in COSTS, or -1 for a user's
  int32_t collapses;  // whether BP1 is a - y
  int32_t from_z;     // whether C takes z
  double low, high;   // what a is kept within before C's logarithms
  const AbiLayer* layers;
  // A user's C_x and ∇C: (a, y, out, rows, columns); out has a number a row, or a's shape.
  void (*samples)(const void*, const void*, void*, int64_t, int64_t);
  void (*gradient)(const void*, const void*, void*, int64_t, int64_t);
};

// One network's part in an epoch.
struct AbiMember {
  int32_t batch;     // rows of a mini-batch
  int32_t block;     // rows that a thread takes through the network at a time
  int32_t in_place;  // whether rows of X are read where they lie; else they are copied into strips
  int32_t rule;      // its number in RULES, or GRADIENT
  int32_t by_neurons;  // whether a thread has strips of layer 1 and not rows there; rows in place
  int32_t unused;
  int64_t rows;      // of the epoch: the length of `order`
  const int64_t* order;
  const double* coefficients;  // (steps, 4)
  double clip_value, clip_norm, l1, l2, d1, d2, epsilon;
  const int32_t* slices;    // a layer's: into how many its sums of z are cut; null: no layer's
  void *p, *state[2];       // flat; a state is null where the rule has none
  double *costs, *squares;  // (steps); Σ w² before each step, or null
  void* memory;             // of as many bytes as `backprop_cpu_bytes` says, at a multiple of 64
};

// a^L of rows of X, and C over them, for one network.
struct AbiReading {
  const AbiNetwork* network;
  const void *X, *Y;  // Y is null where no C is wanted
  const void* p;
  int64_t rows;
  int32_t threads;
  int32_t block;  // rows that a thread takes through the network at a time; C's bits depend on it
  void* outputs;  // (rows, n_L)
  double* costs;  // (blocks), Σ C_x of each block's rows; or null
  void* memory;   // of as many bytes as `backprop_cpu_reading_bytes` says, at a multiple of 64
};

// Steps first … last - 1 of each member, `last` being cut to its own. Parameters and state are read
// at step 0 and written back behind a member's last step, and between them lie in its memory; or
// they are read and written by every call.
struct AbiJob {
  const AbiNetwork* network;
  const void *X, *Y;
  AbiMember* members;
  int32_t count;
  int32_t teams, threads;  // teams take members in turn; a team is so many threads
  int32_t every_call;
  int64_t first, last;
};
}
