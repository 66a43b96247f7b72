// Bulk copies between global and shared memory, of plain bytes and of boxes of a tensor.  They land at a time
// and in an order of the scheduler's choice, while threads poll; until a load has landed its destination
// holds NaN.
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

void check_alignment(const void* global, u32 shared, int bytes, Where where) {
  if ((reinterpret_cast<uintptr_t>(global) | shared | u32(bytes)) & 15) {
    fail(false, "cp.async.bulk: addresses and size have to be multiples of 16 (%s:%d)", where.file,
         where.line);
  }
}

void issue_load(BulkCopy&& copy) {
  for (const BulkCopy::Piece& piece : copy.pieces) {
    if (piece.src) {
      volatile u8 probe = piece.src[0];  // faults here when the source is out of bounds
      probe = piece.src[piece.bytes - 1];
      (void)probe;
      race_touch(piece.src, piece.bytes, Access::kRead, M.lane);
    }
    race_touch(piece.dst, piece.bytes, Access::kBulkIssue, M.lane);
    std::memset(piece.dst, 0xff, piece.bytes);
  }
  mbarrier_at(copy.mbarrier, "cp.async.bulk");
  copy.clock = race_bulk_issued();
  M.cta->in_flight.push_back(std::move(copy));
  preempt();
}

void issue_store(BulkCopy&& copy) {
  for (const BulkCopy::Piece& piece : copy.pieces) {
    race_touch(piece.src, piece.bytes, Access::kBulkRead, M.lane);
    race_touch(piece.dst, piece.bytes, Access::kWrite, M.lane);
  }
  Lane& lane = me();
  copy.number = ++lane.stores;
  ++lane.uncommitted_stores;
  M.cta->in_flight.push_back(std::move(copy));
  preempt();
}

void land(Cta& cta, size_t index) {
  const BulkCopy copy = std::move(cta.in_flight[index]);
  cta.in_flight.erase(cta.in_flight.begin() + index);
  for (const BulkCopy::Piece& piece : copy.pieces) {
    if (copy.to_shared) race_touch(piece.dst, piece.bytes, Access::kBulkDone, copy.lane);
    if (piece.src) {
      std::memcpy(piece.dst, piece.src, piece.bytes);
    } else {
      std::memset(piece.dst, 0, piece.bytes);
    }
  }
  if (copy.to_shared) mbarrier_bytes_arrived(mbarrier_at(copy.mbarrier, "complete_tx"), copy);
  progress();
}

// Calls f(shared address, global address or null, bytes) for the box at `at`, in pieces that lie together on
// both sides.
template <class F>
void for_each_piece(const TensorMap& map, u32 shared, const int* at, F f) {
  const int row_bytes = int(map.box[0]) * map.element_bytes;
  const int piece = map.swizzle_bits ? 16 : row_bytes;
  int64_t rows = 1;
  for (int k = 1; k < map.rank; ++k) rows *= map.box[k];
  for (int64_t row = 0; row < rows; ++row) {
    bool inside = true;
    u8* p = map.base;
    int64_t rest = row;
    for (int k = 1; k < map.rank; ++k) {
      const int64_t i = at[k] + rest % map.box[k];
      rest /= map.box[k];
      inside = inside && i >= 0 && u64(i) < map.size[k];
      p += i * int64_t(map.stride[k]);
    }
    for (int x = 0; x < row_bytes; x += piece) {
      const u32 to = shared + u32(row * row_bytes) + u32(x);
      // A piece may lie partly outside: split where the tensor begins and ends.
      const int64_t first = at[0] + x / map.element_bytes, n = piece / map.element_bytes;
      const int64_t begin = first < 0 ? -first : 0, end = std::min(n, int64_t(map.size[0]) - first);
      const auto part = [&](int64_t b, int64_t e, bool in) {
        if (b >= e) return;
        const int e_bytes = map.element_bytes;
        f(swizzled(to, map.swizzle_bits) + u32(b * e_bytes), in ? p + (first + b) * e_bytes : nullptr,
          int(e - b) * e_bytes);
      };
      if (!inside || begin >= end) {
        part(0, n, false);
      } else {
        part(0, begin, false);
        part(begin, end, true);
        part(end, n, false);
      }
    }
  }
}

void check_tensor_copy(const TensorMap& map, u32 shared, int rank, Where where) {
  if (map.rank != rank)
    fail(false, "cp.async.bulk.tensor: a map of %d dimensions (%s:%d)", map.rank, where.file, where.line);
  if (shared & 127) {
    fail(false, "cp.async.bulk.tensor: shared address %u, not aligned to 128 bytes (%s:%d)", shared,
         where.file, where.line);
  }
}

int box_bytes(const TensorMap& map) {
  int64_t bytes = map.element_bytes;
  for (int k = 0; k < map.rank; ++k) bytes *= map.box[k];
  return int(bytes);
}

}  // namespace

bool land_a_copy(Cta& cta) {
  if (cta.in_flight.empty()) return false;
  land(cta, M.seed ? random_bits() % cta.in_flight.size() : 0);
  return true;
}

void check_tensor_map(const TensorMap& map) {
  const auto refuse = [](const char* what, int k, u64 value) {
    throw Error("SIMT ERROR: tensor map: " + std::string(what) + " of dimension " + std::to_string(k) +
                " is " + std::to_string(value));
  };
  if (map.rank < 2 || map.rank > 5) refuse("the number", 0, u64(map.rank));
  if (reinterpret_cast<uintptr_t>(map.base) & 15) refuse("the address", 0, reinterpret_cast<u64>(map.base));
  for (int k = 0; k < map.rank; ++k) {
    if (map.size[k] < 1 || map.size[k] > 1ull << 32) refuse("the size", k, map.size[k]);
    if (map.box[k] < 1 || map.box[k] > 256) refuse("the box", k, map.box[k]);
    if (k && (map.stride[k] & 15 || map.stride[k] >= 1ull << 40)) refuse("the stride", k, map.stride[k]);
  }
  const u32 row = map.box[0] * u32(map.element_bytes);
  if (row & 15) refuse("the row of a box in bytes", 0, row);
  if (map.swizzle_bits && row > 16u << map.swizzle_bits) refuse("the row of a swizzled box in bytes", 0, row);
}

void bulk_load(u32 dst, const void* src, int bytes, u32 bar, Where where) {
  me().wait = {"cp.async.bulk", where, 0};
  check_alignment(src, dst, bytes, where);
  BulkCopy copy{{}, true, bar, bytes, M.lane, 0, 0};
  copy.pieces.push_back({shared_pointer(dst, bytes, "cp.async.bulk"), static_cast<const u8*>(src), bytes});
  issue_load(std::move(copy));
}

void bulk_store(void* dst, u32 src, int bytes, Where where) {
  me().wait = {"cp.async.bulk", where, 0};
  check_alignment(dst, src, bytes, where);
  BulkCopy copy{{}, false, 0, bytes, M.lane, 0, 0};
  copy.pieces.push_back({static_cast<u8*>(dst), shared_pointer(src, bytes, "cp.async.bulk"), bytes});
  issue_store(std::move(copy));
}

void tensor_load(u32 dst, const TensorMap& map, u32 bar, const int* at, int rank, Where where) {
  me().wait = {"cp.async.bulk.tensor", where, 0};
  check_tensor_copy(map, dst, rank, where);
  BulkCopy copy{{}, true, bar, box_bytes(map), M.lane, 0, 0};
  for_each_piece(map, dst, at, [&](u32 shared, const u8* global, int bytes) {
    copy.pieces.push_back({shared_pointer(shared, bytes, "cp.async.bulk.tensor"), global, bytes});
  });
  issue_load(std::move(copy));
}

void tensor_store(const TensorMap& map, u32 src, const int* at, int rank, Where where) {
  me().wait = {"cp.async.bulk.tensor", where, 0};
  check_tensor_copy(map, src, rank, where);
  BulkCopy copy{{}, false, 0, 0, M.lane, 0, 0};
  for_each_piece(map, src, at, [&](u32 shared, u8* global, int bytes) {
    if (global) copy.pieces.push_back({global, shared_pointer(shared, bytes, "cp.async.bulk.tensor"), bytes});
  });
  issue_store(std::move(copy));
}

void bulk_commit() {
  Lane& lane = me();
  lane.store_groups.push_back(lane.stores);
  lane.uncommitted_stores = 0;
  preempt();
}

void bulk_wait(int pending, Where where) {
  Lane& lane = me();
  lane.wait = {"cp.async.bulk.wait_group", where, 0};
  if (int(lane.store_groups.size()) <= pending) return;
  const u32 last = lane.store_groups[lane.store_groups.size() - 1 - size_t(pending)];
  Cta& cta = *M.cta;
  for (size_t i = 0; i < cta.in_flight.size();) {
    const BulkCopy& copy = cta.in_flight[i];
    if (!copy.to_shared && copy.lane == lane.id && copy.number <= last) {
      land(cta, i);
    } else {
      ++i;
    }
  }
  lane.store_groups.erase(lane.store_groups.begin(), lane.store_groups.end() - pending);
}

bool elect_one(Where where) {
  collective(~0u, nullptr, [](void**, u32) {}, kPlain, "elect.sync", where);
  return u32(lane_id()) == (M.seed * 11 & 31);  // always the same lane, but no code may count on which
}

}  // namespace simt
