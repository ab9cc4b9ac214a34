// N numbers that move as one: 16 bytes where N · sizeof(T) is 16.
#pragma once

template <class T, int N> struct alignas(N * sizeof(T)) Run { T x[N]; };
