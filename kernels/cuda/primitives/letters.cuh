// Numbers that blocks of one launch send each other through device memory, with no barrier between
// them: a letter holds 32 bits of a number and, beside them, which message it is. Who waits for a
// message looks until its letters are there. A letter is written and read whole, so its bits are
// those of its message, and letters order nothing else: this needs no fence. All blocks that write
// to each other must run at once (a cooperative launch), or they would wait for ever.
//
// A letter is written anew when all have read it. Messages are not 0, which is what letters hold
// at first.
#pragma once

// Letters that a number takes.
template <class T> constexpr int words_of = sizeof(T) / 4;

#ifdef __CUDACC__

template <class T>
__device__ __forceinline__ void send(unsigned long long* letter, T value, unsigned message) {
  unsigned words[words_of<T>];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int w = 0; w < words_of<T>; ++w)
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(letter + w)),
                 "l"((unsigned long long)(message) << 32 | words[w]));
}

// values[i] from the letters of number i · stride. Each block sends EACH of them; those of this
// block, which is number `own` of them, are in `kept` in place of letters, as far apart. All letters
// are on their way at once: a look costs the latency of one.
template <int EACH, class T, int COUNT>
__device__ __forceinline__ void receive(T (&values)[COUNT], const unsigned long long* letters,
                                        const T* kept, int stride, int own, unsigned message) {
  unsigned long long found[COUNT][words_of<T>];
  bool there;
  do {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int w = 0; w < words_of<T>; ++w)
        if (i / EACH != own)
          asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                       : "=l"(found[i][w])
                       : "l"(__cvta_generic_to_global(letters + size_t(i) * stride * words_of<T> +
                                                      w)));
    there = true;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int w = 0; w < words_of<T>; ++w)
        there = there && (i / EACH == own || unsigned(found[i][w] >> 32) == message);
  } while (!there);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    unsigned words[words_of<T>];
#pragma unroll
    for (int w = 0; w < words_of<T>; ++w) words[w] = unsigned(found[i][w]);
    T value;
    memcpy(&value, words, sizeof(T));
    values[i] = i / EACH == own ? kept[i % EACH * stride] : value;
  }
}

#else

// For ThreadSanitizer the words are ordinary memory, which the messages' numbers order: it sees a
// letter that is written while somebody may still read the message before. (So here letters order
// other memory, too, which they do not on the device.)
template <class T>
void send(unsigned long long* letter, T value, unsigned message) {
  if (uintptr_t(letter) % 8 != 0) cuda_host::fail("a letter is at a multiple of 8 bytes");
  if (message == 0) cuda_host::fail("message 0 is what is there before the first");
  for (int w = 0; w < words_of<T>; ++w) {
    auto* halves = reinterpret_cast<unsigned*>(letter + w);
    memcpy(halves, reinterpret_cast<const char*>(&value) + 4 * w, 4);
    __atomic_store_n(halves + 1, message, __ATOMIC_RELEASE);
  }
}

template <int EACH, class T, int COUNT>
void receive(T (&values)[COUNT], const unsigned long long* letters, const T* kept, int stride,
             int own, unsigned message) {
  constexpr int patience = 100000;  // turns of all other threads
  for (int i = 0; i < COUNT; ++i) {
    if (i / EACH == own) values[i] = kept[i % EACH * stride];
    for (int w = 0; i / EACH != own && w < words_of<T>; ++w) {
      const auto* halves =
          reinterpret_cast<const unsigned*>(letters + size_t(i) * stride * words_of<T> + w);
      for (int looks = 0; __atomic_load_n(halves + 1, __ATOMIC_ACQUIRE) != message; ++looks) {
        if (looks == patience) cuda_host::fail("message %u does not come", message);
        cuda_host::yield();
      }
      memcpy(reinterpret_cast<char*>(&values[i]) + 4 * w, halves, 4);
    }
  }
}

#endif
