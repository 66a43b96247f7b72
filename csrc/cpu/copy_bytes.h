// A bitwise copy between places that do not overlap.
#pragma once
#include <cstring>

#include "isa.h"

namespace skv::cpu::SKV_ISA {

inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace skv::cpu::SKV_ISA
