// The switch behind which launches may overlap: prim.cuh.
#include <utility>

#include "../core/backend.h"
#include "prim.cuh"

namespace skv {
namespace cuda {

bool overlap_launches(bool enabled) { return std::exchange(prim::overlapped(), enabled); }

}  // namespace cuda
}  // namespace skv
