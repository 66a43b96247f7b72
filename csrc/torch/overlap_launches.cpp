// overlap_launches: a switch of the calling thread, without tensors.
#include "backend_call.h"
#include "entries.h"

namespace skv::entry {

bool overlap_launches(bool enabled) { return &cuda::overlap_launches && cuda::overlap_launches(enabled); }

}  // namespace skv::entry
