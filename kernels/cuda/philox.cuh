// Philox4x32-10: four words of random bits for a counter of four and a key of two (Salmon et al. 2011).
// backprop_gpu/philox.py says which are whose.
#pragma once

struct Philox {
  unsigned word[4];

  __device__ Philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned k0, unsigned k1)
      : word{c0, c1, c2, c3} {
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
      const unsigned long long first = 0xd2511f53ull * word[0], second = 0xcd9e8d57ull * word[2];
      const unsigned c1_now = word[1], c3_now = word[3];
      word[0] = unsigned(second >> 32) ^ c1_now ^ k0;
      word[1] = unsigned(second);
      word[2] = unsigned(first >> 32) ^ c3_now ^ k1;
      word[3] = unsigned(first);
    }
  }
};

// What dropout makes of a member's numbers in a step. `of_member` are the key's two words, the number of
// the first step and, of each hidden layer l from 1 on, the threshold of what is kept.
struct Dropping {
  const unsigned* of_member;
  unsigned step;

  __device__ double kept(int l) const { return 1 - of_member[2 + l] / 4294967296.0; }
  // Of row x and neuron j of layer l: 0, or 1 / kept(l).
  template <class T> __device__ T factor(int l, int x, int j) const {
    const Philox bits(unsigned(x), unsigned(j / 4), unsigned(l), of_member[2] + step, of_member[0],
                      of_member[1]);
    const int i = j % 4;
    const unsigned word = i == 0 ? bits.word[0] : i == 1 ? bits.word[1] : i == 2 ? bits.word[2] : bits.word[3];
    const unsigned threshold = of_member[2 + l];
    return word >= threshold ? T(4294967296.0 / (4294967296.0 - threshold)) : T(0);
  }
};
