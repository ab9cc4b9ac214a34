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
