// What the kernels that hold a whole network have in common.
#pragma once

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

// Of an output whose σ does not couple it with others: c(σ(z), y) and, by BP1, δ.
template <class T> struct Output {
  T term, error;
};
template <class Objective, class Sigma, class T>
__device__ __forceinline__ Output<T> output_of(T z, T y) {
  using Cost = typename Objective::Cost;
  const T a = Sigma::value(z);
  if constexpr (Objective::collapses) {
    return {Cost::term_from_z(z, a, y), a - y};
  } else {
    const T inside = Cost::inside(a);
    return {Cost::term(a, y),
            Cost::error(inside, y, Sigma::derivative(Sigma::from_z ? z : inside))};
  }
}
