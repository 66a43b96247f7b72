// One small kernel per prim:: function, with the answer worked out on the host from the instruction's
// definition.  The same cases run on the emulator (tests/test_simt_prims.py) and, compiled by nvcc, on a GPU:
// where both give the expected words, the inline PTX and its emulation mean the same.
//
// prim_cases() lists them; prim_check.cu is the program that runs them.  Numbers are small integers wherever
// they are added up, so results are exact in any order and are compared bit for bit.
#pragma once

#include "prim_kernels_ampere.cuh"
#include "prim_kernels_hopper.cuh"

namespace skv {
namespace prim_cases {

inline std::vector<PrimCase> prim_cases() {
  std::vector<PrimCase> cases = ampere_cases();
  for (const PrimCase& c : hopper_cases()) cases.push_back(c);
  return cases;
}

}  // namespace prim_cases
}  // namespace skv
