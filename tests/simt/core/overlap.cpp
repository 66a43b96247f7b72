// Grids that overlap, for the race checker: a CTA that has not waited for the grids ahead neither writes
// global memory nor reads what they write, as far back as the last one that overlapped nothing.
#if defined(SIMT_RACE)
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

u64 grid = 0;
std::unordered_map<u64, u64> written;  // words of global memory, by grids that may still be at work: by which

}  // namespace

void overlap_launch() {
  ++grid;
  if (!M.overlapped || !M.overlapping) written.clear();
}

void overlap_access(const u8* p, int bytes, bool writes) {
  const bool early = M.overlapped && !M.cta->waited;
  if (writes && early) {
    fail(false, "overlapped grid writes to global memory before it has waited for those ahead");
  }
  if (!M.overlapping || (!writes && !early)) return;
  for (u64 word = reinterpret_cast<u64>(p) / 4; word <= reinterpret_cast<u64>(p + bytes - 1) / 4; ++word) {
    if (writes) {
      written[word] = grid;
      continue;
    }
    const auto found = written.find(word);
    if (found != written.end() && found->second != grid) {
      fail(false, "overlapped grid reads what a grid ahead writes before it has waited");
    }
  }
}

}  // namespace simt
#endif  // SIMT_RACE
