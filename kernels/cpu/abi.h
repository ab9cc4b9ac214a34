// What Python hands over, by ctypes (backprop_gpu/cpu.py has the same structures).
// T is float or double, as `itemsize` says; arrays are C-contiguous.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

enum { ABI_VERSION = 8 };

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
  int32_t stored;    // bytes of a number of X: itemsize, or 1 for uint8; 0: X is an AbiSparse
  int32_t depth;
  int32_t cost;       // its number in COSTS, or -1 for a user's
  int32_t collapses;  // whether BP1 is a - y
  int32_t from_z;     // whether C takes z
  double low, high;   // what a is kept within before C's logarithms
  const double* constants;  // the cost's own numbers
  int64_t count;            // of them
  const AbiLayer* layers;
  // A user's C_x and ∇C: (a, y, out, rows, columns); out has a number a row, or a's shape.
  void (*samples)(const void*, const void*, void*, int64_t, int64_t);
  void (*gradient)(const void*, const void*, void*, int64_t, int64_t);
};

// Rows in CSR form, the columns of each in ascending order: those of row x are columns[starts[x]] …
// columns[starts[x + 1] - 1].
struct AbiSparse {
  const int64_t* starts;
  const int32_t* columns;
  const void* values;
};

// One network's part in an epoch, or in several, one after another.
struct AbiMember {
  int32_t batch;     // rows of a mini-batch
  int32_t block;     // rows that a thread takes through the network at a time
  int32_t in_place;  // whether rows of X are read where they lie; else they are copied into strips
  int32_t rule;      // its number in RULES
  int32_t by_inputs;  // whether a thread has slices of z^1's sums, and not rows; of rows in place
  int32_t epochs;
  // A mini-batch is cut into so many shards, a power of two, of rows that follow each other. Gradients
  // are summed in each, and their sums along a binary tree over the shards.
  int32_t shards;
  int32_t first_shard, end_shard;  // this process's are first_shard … end_shard - 1
  int64_t rows;      // of an epoch
  const int64_t* order;        // (epochs, rows)
  const double* coefficients;  // (steps, 6), those of all epochs, like what else has a number a step
  const void* weights;         // (epochs, rows) in that order, by which rows count; null: all are 1
  const double* rates;         // of layers 1 … L-1, of dropout; null: there is none
  const uint64_t* keys;        // (epochs), its
  int64_t first_step;          // the number, in its epoch, of step 0
  double clip_value, clip_norm, max_norm, l1, d1, d2, epsilon;  // the first three infinite for none
  const int32_t* slices;    // a layer's: into how many its sums of z are cut; null: no layer's
  void *p, *state[2];       // flat; a state is null where the rule has none
  double *costs, *squares;  // (steps, shards), this process's; (steps), Σ w² before each, or null
  // Of steps in parts, the gradient in strips, layer by layer: a row for each of the largest trees
  // that have this process's shards alone, and the sum of all processes' is to be in the first.
  void* gradient;
  void* memory;             // of as many bytes as `backprop_cpu_bytes` says, at a multiple of 64
};

// What a pass does with all rows at once.
enum Stage {
  READ,       // a^L, and C
  FORWARD,    // a^L, keeping in `memory` what BACKWARD reads, a pass of the same threads and block
  BACKWARD,   // gradients, from ∂C/∂a^L
  GRADIENTS,  // C and its gradients
};

// Rows through one network whose parameters stay as they are, and back.
struct AbiPass {
  const AbiNetwork* network;
  const void *X, *Y;  // Y is null where no C is wanted
  int64_t x_row;      // numbers from a row of X to the next
  const void* const* parameters;  // w^1 … w^L, b^1 … b^L
  int32_t inputs_first;  // whether w^l is (n_{l-1}, n_l), and not (n_l, n_{l-1}); so its gradient
  int32_t stage;
  int64_t rows;
  int32_t threads;
  int32_t block;     // rows that a thread takes through the network at a time; C's bits depend on it
  int32_t in_place;  // whether rows of X are read where they lie, as of AbiMember
  int32_t unused;
  void* outputs;     // a^L, (rows, n_L); or null, unless the stage is READ or FORWARD
  double* costs;     // Σ C_x, READ: (blocks), of each block's rows; GRADIENTS: of all; or null
  const void* weights;     // (rows), by which they count; null: all are 1
  double total;            // what gradients are divided by
  const void* error;       // ∂C/∂a^L, (rows, n_L), of BACKWARD
  void* const* gradients;  // as parameters; null where one is not wanted
  void* inputs_error;      // ∂C/∂x, (rows, n_0); or null, in FORWARD, too
  void* memory;  // of FORWARD and BACKWARD, of as many bytes as `backprop_cpu_pass_bytes` says, at a
                 // multiple of 64; the other two take their own
};

// Threads of OpenMP's, where the caller has them: its functions of these names.
struct AbiOpenMP {
  void (*GOMP_parallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
  int (*omp_get_thread_num)(void);
  int (*omp_get_num_threads)(void);
};

// What a job runs: whole steps; or one of a step, between whose parts other processes' sums are added
// to the gradient.
enum Part {
  WHOLE,
  ROWS_OF_STEP,  // the costs, and δ of all layers
  GRADIENT,      // BP3 and BP4 of one layer
  CHANGE,        // the rule
};

// Steps first … last - 1 of each member, of all its epochs, `last` being cut to its own. Parameters
// and state are read at step 0 and written back behind a member's last step, and between them lie
// in its memory; or they are read and written by every call.
struct AbiJob {
  const AbiNetwork* network;
  const void *X, *Y;
  AbiMember* members;
  int32_t count;
  int32_t teams, threads;  // teams take members in turn; a team is so many threads
  int32_t every_call;
  int32_t part, layer;  // a Part, and what layer's gradient, from 0
  int64_t first, last;
};
}
