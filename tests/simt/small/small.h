// What the small cases share.  A program runs its cases under several schedules and ends with 0 if every
// answer was right, 98 if one was not, 99 if the emulator reported something.
#pragma once

#include <simt/buffer.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace small {

using simt::Buffer;

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline uint32_t hash(uint32_t i) {
  i = (i ^ 61) ^ (i >> 16);
  i *= 9;
  i ^= i >> 4;
  i *= 0x27d4eb2d;
  return i ^ (i >> 15);
}
inline float number(size_t i) { return float(int(hash(uint32_t(i) + 1) % 33) - 16) / 8.f; }  // -2 .. 2

template <class T>
void fill_numbers(Buffer<T>& buffer, size_t salt = 0) {
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = T(number(i + salt));
}
template <class T>
std::vector<T> copy_of(Buffer<T>& buffer) {
  return std::vector<T>(buffer.data(), buffer.data() + buffer.size());
}
template <class T>
void set(Buffer<T>& buffer, const std::vector<T>& values) {
  std::copy(values.begin(), values.end(), buffer.data());
}

inline void expect(bool ok, const std::string& what) {
  if (!ok) throw Wrong(what);
}
template <class T>
void expect_same(Buffer<T>& got, const std::vector<T>& want, const char* what) {  // bit for bit
  for (size_t i = 0; i < want.size(); ++i) {
    expect(!std::memcmp(&got[i], &want[i], sizeof(T)),
           std::string(what) + ", element " + std::to_string(i) + " of " + std::to_string(want.size()));
  }
}
inline void expect_close(float got, float want, float tolerance, const std::string& what) {
  const bool equal = got == want || (got != got && want != want);
  expect(equal || std::fabs(got - want) <= tolerance,
         what + " is " + std::to_string(got) + ", expected " + std::to_string(want));
}

// Address space of which only what is touched takes memory.
template <class T>
class Sparse {
 public:
  explicit Sparse(size_t n) : bytes_(n * sizeof(T)) {
    void* p =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    expect(p != MAP_FAILED, "no address space");
    p_ = static_cast<T*>(p);
  }
  Sparse(const Sparse&) = delete;
  ~Sparse() { munmap(p_, bytes_); }
  T& operator[](size_t i) { return p_[i]; }
  T* data() { return p_; }

 private:
  size_t bytes_;
  T* p_;
};

inline int run(std::initializer_list<void (*)()> cases, int schedules = 4) {
  simt::report_faults();
  for (int seed = 0; seed < schedules; ++seed) {
    simt::set_seed(simt::u64(seed));
    try {
      for (const auto& c : cases) c();
    } catch (const Wrong& e) {
      std::printf("wrong answer under seed %d: %s\n", seed, e.what());
      return 98;
    } catch (const std::exception& e) {
      std::printf("%s\n", e.what());
      return 99;
    }
  }
  return 0;
}

}  // namespace small
