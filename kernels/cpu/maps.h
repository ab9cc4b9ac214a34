// Elementwise functions over contiguous numbers, one of each for every σ, cost and rule.
//
// Loops are over numbers, and the compiler makes vectors of them; `count` is a multiple of W.
#pragma once
#include "formulas.h"

namespace {

// In the order of backprop_gpu/engines/compiled.py; softmax, which is not elementwise, comes last.
enum Sigmas { SOFTMAX = 10 };
enum Costs { QUADRATIC, BINARY, CATEGORICAL, POISSON };

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
  for (ptrdiff_t i = 0; i < count; ++i) delta[i] = a[i] - y[i];
}

// c(σ(z), y) from z.
template <class Cost, class T>
void terms_from_z(const T* __restrict z, const T* __restrict a, const T* __restrict y,
                  T* __restrict terms, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) terms[i] = Cost::term_from_z(z[i], a[i], y[i]);
}

// c(a, y), a kept within low and high.
template <class Cost, class T>
void terms(const T* __restrict a, const T* __restrict y, T* __restrict terms, T low, T high,
           ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    T inside = a[i] < low ? low : a[i];
    inside = inside > high ? high : inside;
    terms[i] = Cost::term(inside, y[i]);
  }
}

template <class Cost, class T>
void inside(const T* __restrict a, T* __restrict inside, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) inside[i] = Cost::inside(a[i]);
}

// σ' ← δ.
template <class Cost, class T>
void error(const T* __restrict inside, const T* __restrict y, T* __restrict slope,
           ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) slope[i] = Cost::error(inside[i], y[i], slope[i]);
}

// body(Cost()) for the cost of that number.
template <class Body> INLINE void with_cost(int cost, Body body) {
  switch (cost) {
    case QUADRATIC: return body(Quadratic());
    case BINARY: return body(BinaryCrossEntropy());
    case CATEGORICAL: return body(CategoricalCrossEntropy());
    default: return body(Poisson());
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
