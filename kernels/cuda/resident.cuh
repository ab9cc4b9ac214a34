// What a block of the resident kernel keeps in shared memory, and how its threads share the work.
// planning chooses the numbers; Form::bytes is its count of what stands here.
#pragma once

#include "network.cuh"
#include "philox.cuh"
#include "primitives/cluster.cuh"
#include "run.cuh"

// Rows are read in runs of 16 bytes. A row has an odd number of them, so that what neighbouring
// rows have at one column lies in different banks.
template <class T> constexpr int per_run = 16 / sizeof(T);
template <class T, int columns> constexpr int runs_of = units_of<columns, per_run<T>>;
template <class T, int columns> constexpr int row_of = (runs_of<T, columns> | 1) * per_run<T>;

// Numbers that a copy takes from device memory, where a row has WIDTH of them: 16 bytes or a word,
// if all rows start at a multiple of that, else one number.
template <class N> constexpr int per_word = units_of<4, sizeof(N)>;
template <class N, int WIDTH>
constexpr int at_once = WIDTH % per_run<N> == 0    ? per_run<N>
                        : WIDTH % per_word<N> == 0 ? per_word<N>
                                                   : 1;

// m rows per step; threads, blocks of a network, batches on their way or in use, and bytes of shared
// memory. The blocks are a cluster or, if APART, write to each other through device memory. DROPS:
// hidden activations are dropped out.
template <int BATCH, int THREADS, int BLOCKS, int STAGES, int BYTES, bool APART = false,
          bool DROPS = false>
struct Form {
  static constexpr int batch = BATCH, threads = THREADS, blocks = BLOCKS, stages = STAGES;
  static constexpr int bytes = BYTES;
  static constexpr bool apart = APART, cluster = BLOCKS > 1 && !APART, drops = DROPS;
};

// A layer of N neurons. A thread makes X × J of its z, over one of the SLICES of the sum; XB rows ×
// a run of its error (BP2, not of the last layer); and JU rows × a run of its ∂C/∂w.
template <int N, class SIGMA, int X, int J, int SLICES, int XB, int JU> struct Layer {
  using Sigma = SIGMA;
  static constexpr int n = N, x = X, j = J, slices = SLICES, xb = XB, ju = JU;
};

// w, b and, behind them, the optimizer's state; a; and δ, where z waits until it becomes δ, if σ'
// needs z or the layer is the last one. The last layer's a holds the terms of the cost instead.
// What fills up a row is 0 and stays 0.
template <class T, int BATCH, int COPIES, int FAN_IN, int COLUMNS, bool SPLIT, class LAYER>
struct LayerMemory {
  using Layer = LAYER;
  // SPLIT: a block has only some of the columns of w.
  static constexpr int fan_in = FAN_IN, columns = COLUMNS;
  static constexpr bool split = SPLIT;
  static constexpr int weights = aligned<LAYER::n * FAN_IN>, biases = aligned<LAYER::n>;
  static constexpr int parts = SPLIT || LAYER::slices == 1 ? 0 : LAYER::slices * BATCH * LAYER::n;
  static constexpr int error_row = units_of<LAYER::n, 16> * 16;

  alignas(16) T w[COPIES][LAYER::n][row_of<T, COLUMNS>];
  alignas(16) T b[COPIES][LAYER::n];
  alignas(16) T a[BATCH][row_of<T, LAYER::n>];
  alignas(16) T delta[BATCH][error_row];
};

template <class T, int BATCH, int COPIES, int FAN_IN, int COLUMNS, bool SPLIT, class... Layers>
struct Chain;

template <class T, int BATCH, int COPIES, int FAN_IN, int COLUMNS, bool SPLIT, class Last>
struct Chain<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, Last>
    : LayerMemory<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, Last> {
  using Here = LayerMemory<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, Last>;
  static constexpr bool last = true;
  static constexpr int behind = 0;  // layers
  static constexpr int outputs = Last::n, most_parts = Here::parts;
  static constexpr int all_weights = Here::weights, all_biases = Here::biases;
};

template <class T, int BATCH, int COPIES, int FAN_IN, int COLUMNS, bool SPLIT, class First,
          class... Rest>
struct Chain<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, First, Rest...>
    : LayerMemory<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, First> {
  using Here = LayerMemory<T, BATCH, COPIES, FAN_IN, COLUMNS, SPLIT, First>;
  using Next = Chain<T, BATCH, COPIES, First::n, First::n, false, Rest...>;
  static constexpr bool last = false;
  static constexpr int behind = Next::behind + 1;
  static constexpr int outputs = Next::outputs;
  static constexpr int most_parts =
      Here::parts > Next::most_parts ? Here::parts : Next::most_parts;
  static constexpr int all_weights = Here::weights + Next::all_weights;
  static constexpr int all_biases = Here::biases + Next::all_biases;
  Next next;
};

// A mini-batch: FETCHED columns of rows of X, as they are stored, rows of Y, their weights, and c0 …
// c3 and l2.
template <class T, class Stored, int BATCH, int FETCHED, int OUTPUTS> struct Stage {
  alignas(16) Stored x[BATCH][row_of<Stored, FETCHED>];
  alignas(16) T y[BATCH][OUTPUTS];
  alignas(16) T weights[BATCH];
  alignas(16) double coefficients[6];
};

// The rows of a step as numbers, where they are stored as something else.
template <class T, class Stored, int BATCH, int COLUMNS> struct Converted {
  alignas(16) T x[BATCH][row_of<T, COLUMNS>];
};
template <class T, int BATCH, int COLUMNS> struct Converted<T, T, BATCH, COLUMNS> {};

// What the blocks of a network need to add the slices of z[1], of which a block has SLICES of COUNT
// numbers each. Apart, they keep their own here; the others' come in letters.
template <class T, class Form, int SLICES, int COUNT, bool CLUSTER = Form::cluster>
struct Exchange {
  alignas(16) T parts[Form::blocks > 1 ? SLICES * COUNT : 1];
};

// In a cluster, a block adds all slices of every BLOCKS-th number, and all blocks get the sums. Parts
// of two steps alternate.
template <class T, class Form, int SLICES, int COUNT>
struct Exchange<T, Form, SLICES, COUNT, true> {
  alignas(16) T parts[2][SLICES * Form::blocks][units_of<COUNT, Form::blocks>];
  T sums[COUNT];
  TransactionBarrier parts_here, sums_here;
};

// Each block of several has as many slices, of as many runs; the last may have less, or none.
template <class T, class Form, int INPUTS, class First>
constexpr int columns_of =
    (Form::blocks > 1 ? First::slices / Form::blocks * units_of<runs_of<T, INPUTS>, First::slices>
                       : runs_of<T, INPUTS>) *
    per_run<T>;

template <class T, class Stored, class Form, int COPIES, int INPUTS, class First, class... Rest>
struct Memory : Converted<T, Stored, Form::batch, columns_of<T, Form, INPUTS, First>> {
  static constexpr bool split = Form::blocks > 1, converts = sizeof(Stored) < sizeof(T);
  static constexpr int slices = First::slices / Form::blocks;
  static constexpr int all_slices = First::slices * Form::batch * First::n;  // numbers of them
  static constexpr int columns = columns_of<T, Form, INPUTS, First>;
  // A block's columns start where a run of T would, and its copies where one of Stored does.
  static constexpr int fetched = columns + (split ? per_run<Stored> - per_run<T> : 0);
  static_assert(First::slices % Form::blocks == 0, "whole slices");
  using Network = Chain<T, Form::batch, COPIES, INPUTS, columns, split, First, Rest...>;

  Network network;
  Stage<T, Stored, Form::batch, fetched, Network::outputs> stages[Form::stages];
  alignas(16) T parts[Network::most_parts + per_run<T>];
  Exchange<T, Form, slices, Form::batch * First::n> exchange;
};
