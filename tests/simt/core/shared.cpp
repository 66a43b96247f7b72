// Shared memory of each CTA: dynamic memory right-aligned against a guard page, static variables with gaps
// between them, both filled with 0xff (NaN, -1) before the CTA starts.
#include <cstring>

#include "machine.h"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr u32 kGap = 32;  // between static variables; reading it gives NaN, under ASan it is poisoned

}  // namespace

void poison([[maybe_unused]] u8* p, [[maybe_unused]] size_t n) {
#if SIMT_ASAN
  __asan_poison_memory_region(p, n);
#endif
}
void unpoison([[maybe_unused]] u8* p, [[maybe_unused]] size_t n) {
#if SIMT_ASAN
  __asan_unpoison_memory_region(p, n);
#endif
}

void start_shared(Cta& cta) {
  if (!cta.smem_area) {
    cta.smem_area = static_cast<u8*>(map_guarded(kSmemArea));
    cta.static_area = static_cast<u8*>(map_guarded(kStaticArea));
  }
  u8* end = cta.smem_area + kSmemArea;
  cta.smem = end - (M.smem_bytes + 1023) / 1024 * 1024;
  unpoison(cta.smem_area, kSmemArea);
  unpoison(cta.static_area, kStaticArea);
  std::memset(cta.smem, 0xff, end - cta.smem);
  std::memset(cta.static_area, 0xff, M.static_bytes + kGap);
  poison(cta.smem_area, cta.smem - cta.smem_area);
  poison(cta.smem + M.smem_bytes, end - cta.smem - M.smem_bytes);
  poison(cta.static_area, kStaticArea);
  for (const SharedVariable& v : M.shared_variables) unpoison(cta.static_area + v.offset, v.bytes);
}

u8* dynamic_shared() { return M.cta->smem; }

void* static_shared(const void* key, size_t bytes, size_t align) {
  for (const SharedVariable& v : M.shared_variables) {
    if (v.key == key) return M.cta->static_area + v.offset;
  }
  if (align < 16) align = 16;
  const size_t offset = (M.static_bytes + kGap + align - 1) / align * align;
  if (offset + bytes + kGap > kStaticArea)
    fail(false, "more than %zu bytes of static shared memory", kStaticArea);
  M.static_bytes = offset + bytes;
  if (M.static_bytes + M.smem_bytes > kSmemMax) fail(false, "more shared memory than a CTA may use");
  M.shared_variables.push_back({key, u32(offset), u32(bytes)});
  for (int s = 0; s < M.num_slots; ++s) {  // CTAs that started before the variable was first seen
    if (!M.slots[s]->running) continue;
    unpoison(M.slots[s]->static_area + offset, bytes);
    std::memset(M.slots[s]->static_area + offset, 0xff, bytes);
  }
  return M.cta->static_area + offset;
}

u32 shared_address(const void* p) {
  const u8* b = static_cast<const u8*>(p);
  const Cta& cta = *M.cta;
  if (size_t(b - cta.smem) < kSmemArea) return u32(b - cta.smem);
  if (size_t(b - cta.static_area) < kStaticArea) return kStaticBase + u32(b - cta.static_area);
  fail(false, "%p is not in the shared memory of this CTA", p);
}

u8* shared_pointer(u32 address, int bytes, const char* what) {
  const bool is_static = address >= kStaticBase;
  const size_t offset = is_static ? address - kStaticBase : address;
  const size_t size = is_static ? M.static_bytes : M.smem_bytes;
  if (offset + bytes > size) {
    fail(false, "%s: %d bytes at %zu of %zu bytes of shared memory (%s:%d)", what, bytes, offset, size,
         me().wait.where.file, me().wait.where.line);
  }
  return (is_static ? M.cta->static_area : M.cta->smem) + offset;
}

}  // namespace simt
