// Error texts of data-dependent indices, compiled once: kernel files keep the standard library out (see
// isa.h).
#include <string>

#include "../core/backend.h"

namespace skv::cpu {

[[noreturn]] void throw_index_error(const char* arg, int64_t index, int64_t value, const char* expected,
                                    int64_t limit) {
  throw IndexError(std::string(arg) + "[" + std::to_string(index) + "] is " + std::to_string(value) +
                   ", expected " + expected + " " + std::to_string(limit));
}

}  // namespace skv::cpu
