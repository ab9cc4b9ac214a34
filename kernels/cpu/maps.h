// Elementwise functions over contiguous numbers, one of each for every σ, cost and rule.
//
// Loops are over numbers, and the compiler makes vectors of them; `count` is a multiple of W.
#pragma once
#include "formulas.h"

namespace {

// In the order of backprop_gpu/engines/compiled.py; softmax, which is not elementwise, comes last.
enum Sigmas { SOFTMAX = 10 };
// In the order of backprop_gpu/cpu.py.
enum Costs {
  QUADRATIC, BINARY, CATEGORICAL, POISSON, ABSOLUTE, HUBER, QUANTILE, HINGE, SQUARED_HINGE, FOCAL,
  CATEGORICAL_FOCAL, COSINE, GAUSSIAN
};

// A cost's own numbers, as the caller has given them.
struct GivenConstants {
  const double* of = nullptr;
  int count = 1;
  double operator[](int i) const { return of[i]; }
};

template <class T> using Value = void (*)(const T* z, T* a, ptrdiff_t count);
template <class T> using PullBack = void (*)(const T* saved, T* delta, ptrdiff_t count);

// z and a may be the same.
template <class Sigma, class T> void value(const T* z, T* a, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W<T>) {
    T row[W<T>];
    for (int j = 0; j < W<T>; ++j) row[j] = z[i + j];
    for (int j = 0; j < W<T>; ++j) a[i + j] = Sigma::value(row[j]);
  }
}

// δ ← δ ⊙ σ'.
template <class Sigma, class T>
void pull_back(const T* __restrict saved, T* __restrict delta, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) delta[i] *= Sigma::derivative(saved[i]);
}

template <class T> struct SigmaMaps {
  Value<T> value;
  PullBack<T> pull_back;
};
template <class Sigma, class T> constexpr SigmaMaps<T> maps_of = {value<Sigma, T>,
                                                                   pull_back<Sigma, T>};
template <class T>
constexpr SigmaMaps<T> SIGMAS[] = {
    maps_of<Sigmoid, T>, maps_of<Tanh, T>,     maps_of<Relu, T>,     maps_of<LeakyRelu, T>,
    maps_of<Elu, T>,     maps_of<Gelu, T>,     maps_of<Silu, T>,     maps_of<Softplus, T>,
    maps_of<Identity, T>, maps_of<Exponential, T>,
};

// Where BP1 collapses: δ = a - y.
template <class T>
void difference(const T* __restrict a, const T* __restrict y, T* __restrict delta,
                ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) delta[i] = difference_of(a[i], y[i]);
}

// c(σ(z), y) from z.
template <class Cost, class T>
void terms_from_z(const Cost& cost, const T* __restrict z, const T* __restrict a,
                  const T* __restrict y, T* __restrict terms, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) terms[i] = term_of_z(cost, z[i], a[i], y[i]);
}

// c(a, y), a kept within low and high, of a strip whose first output is j.
template <class Cost, class T>
void terms(const Cost& cost, const T* __restrict a, const T* __restrict y, T* __restrict terms,
           T low, T high, int j, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    T inside = a[i] < low ? low : a[i];
    inside = inside > high ? high : inside;
    terms[i] = term_of(cost, inside, y[i], j + int(i % W<T>));
  }
}

template <class Cost, class T>
void inside(const Cost& cost, const T* __restrict a, T* __restrict inside, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) inside[i] = cost.inside(a[i]);
}

// σ' ← δ, of a strip whose first output is j.
template <class Cost, class T>
void error(const Cost& cost, const T* __restrict inside, const T* __restrict y,
           T* __restrict slope, int j, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i)
    slope[i] = error_of(cost, inside[i], y[i], slope[i], j + int(i % W<T>));
}

// body(cost) for the cost of that number.
template <class Body> INLINE void with_cost(int cost, GivenConstants constants, Body body) {
  switch (cost) {
    case QUADRATIC: return body(Quadratic());
    case BINARY: return body(BinaryCrossEntropy());
    case CATEGORICAL: return body(CategoricalCrossEntropy());
    case POISSON: return body(Poisson());
    case ABSOLUTE: return body(AbsoluteError());
    case HUBER: return body(Huber<GivenConstants>{{}, constants});
    case QUANTILE: return body(Quantile<GivenConstants>{{}, constants});
    case HINGE: return body(Hinge());
    case SQUARED_HINGE: return body(SquaredHinge());
    case FOCAL: return body(Focal<GivenConstants>{{}, constants});
    case CATEGORICAL_FOCAL: return body(CategoricalFocal<GivenConstants>{{}, constants});
    case COSINE: return body(Cosine());
    default: return body(GaussianNll());
  }
}

// body(Rule()) for the rule of that number.
template <class Body> INLINE void with_rule(int rule, Body body) {
  switch (rule) {
    case 0: return body(Sgd());
    case 1: return body(Momentum());
    case 2: return body(Nesterov());
    case 3: return body(Adam());
    default: return body(AdamW());
  }
}

}  // namespace
