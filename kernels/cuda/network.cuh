// What the kernels that hold a whole network have in common. It comes behind activations.cuh and
// costs.cuh, wherever the kernel has put them.
#pragma once

#include "primitives/warp.cuh"

// How many units hold `count`.
template <int count, int unit> constexpr int units_of = (count + unit - 1) / unit;

// In the parameters' flat array every block starts at a multiple of 32 (parameters.py).
template <int count> constexpr int aligned = units_of<count, 32> * 32;

// `collapses`: BP1 is a - y for this cost and the last σ.
template <class COST, bool COLLAPSES> struct Objective {
  using Cost = COST;
  static constexpr bool collapses = COLLAPSES;
};

// The σ of a last layer whose outputs are coupled: a_j = e^(z_j - max z) / Σ_k e^(z_k - max z).
struct Softmax {
  static constexpr bool from_z = false;
};
template <class Sigma> constexpr bool couples = false;
template <> constexpr bool couples<Softmax> = true;
// Whether a row's outputs are to be taken together.
template <class Objective, class Sigma>
constexpr bool by_row = couples<Sigma> || Objective::Cost::by_row;

// c(σ(z), y) and, by BP1, δ of an output.
template <class T> struct Output {
  T term, error;
};

// Of output j, which neither σ nor the cost couples with others.
template <class Objective, class Sigma, class T>
__device__ __forceinline__ Output<T> output_of(T z, T y, int j) {
  const typename Objective::Cost cost;
  const T a = Sigma::value(z);
  if constexpr (Objective::collapses) {
    return {term_of_z(cost, z, a, y), difference_of(a, y)};
  } else {
    const T inside = cost.inside(a);
    return {term_of(cost, a, y, j),
            error_of(cost, inside, y, Sigma::derivative(Sigma::from_z ? z : inside), j)};
  }
}

// Of two outputs that belong together, by their z.
template <class Objective, class Sigma, class T>
__device__ __forceinline__ Pair<T> pair_of_outputs(T first, T second, T y) {
  const T a = Sigma::value(first), b = Sigma::value(second);
  return pair_of(typename Objective::Cost(), a, b, y, Sigma::derivative(Sigma::from_z ? first : a),
                 Sigma::derivative(Sigma::from_z ? second : b));
}

// Of the outputs of a row that σ or the cost couples. A lane has some of them:
//
//   each(body)  body(j, z, y) for every one of its outputs
//   put(body)   the same, and what is to become of the Output that each gives
//   sum, max    over the lanes of the row
template <class Objective, class Sigma, class T, class Lane>
__device__ __forceinline__ void outputs_of_row(Lane lane) {
  T largest = -Lane::largest(), total = 0;  // a lane may have no output
  if constexpr (couples<Sigma>) {
    lane.each([&](int, T z, T) { largest = z > largest ? z : largest; });
    largest = lane.max(largest);
    lane.each([&](int, T z, T) { total += Exponential::value(z - largest); });
    total = lane.sum(total);
  }
  const auto output = [&](T z) {
    if constexpr (couples<Sigma>)
      return Exponential::value(z - largest) / total;
    else
      return Sigma::value(z);
  };
  OutputRow<T, typename Objective::Cost> row;
  if constexpr (!Objective::collapses) {
    lane.each([&](int j, T z, T y) { row.add(output(z), y, j); });
    for (T& sum : row.sums) sum = lane.sum(sum);
    row.finish();
  }
  lane.put([&](int j, T z, T y) -> Output<T> {
    const T a = output(z);
    if constexpr (Objective::collapses) {
      return {term_of_softmax(row.cost, z, y, largest, T(1) / total), difference_of(a, y)};
    } else if constexpr (couples<Sigma>) {
      return {row.term(a, y, j), row.error(a, y, a, j)};
    } else {
      return {row.term(a, y, j), row.error(a, y, Sigma::derivative(Sigma::from_z ? z : a), j)};
    }
  });
}

// A row whose z and y lie in memory; of its LANES lanes, each has every LANES-th output from `own` on.
// put(j, Output) may write where z lies. Rows that are not `inside` only take part in sums.
template <class T, int LANES, class Put> struct RowInMemory {
  const T *z, *y;
  int n, own;
  bool inside;
  Put write;

  static __device__ T largest() { return below_one<T>() / smallest<T>() / T(4); }
  static __device__ T sum(T x) { return warp_sum<LANES>(x); }
  static __device__ T max(T x) { return warp_max<LANES>(x); }
  template <class Body> __device__ __forceinline__ void each(Body body) const {
#pragma unroll 1
    for (int j = own; j < n; j += LANES) body(j, z[j], y[j]);
  }
  template <class Body> __device__ __forceinline__ void put(Body body) const {
    __syncwarp();  // lanes that are not inside have read z of a row that is
#pragma unroll 1
    for (int j = own; inside && j < n; j += LANES) write(j, body(j, z[j], y[j]));
  }
};
template <int LANES, class T, class Put>
__device__ RowInMemory<T, LANES, Put> row_in_memory(const T* z, const T* y, int n, int own,
                                                    bool inside, Put write) {
  return {z, y, n, own, inside, write};
}
