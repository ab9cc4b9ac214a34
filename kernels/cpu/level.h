// What is compiled once for each level of instructions, and chosen when the library is loaded.
#pragma once
#include "abi.h"
#include "team.h"

struct Level {
  const char* name;
  int fma;  // whether a multiply-add rounds once: all levels that do, give the same bits
  size_t (*bytes)(const AbiNetwork&, const AbiMember&, int threads);
  void (*layers)(const AbiNetwork&, int64_t* starts);
  void (*train)(const AbiJob&, const Team&, int thread);
  size_t (*pass_bytes)(const AbiPass&);
  void (*pass)(const AbiPass&, const Team&, int thread);
};
