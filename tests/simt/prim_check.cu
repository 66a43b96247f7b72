// Runs the cases of prim_kernels.cuh and compares their words with the expected ones.
//
//   prim_check [NAME...]        the cases of those names, or all
//
// On a GPU: nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I csrc/cuda tests/simt/prim_check.cu -o
// prim_check (or another architecture: cases that the device cannot run are skipped).  On the emulator it is
// the CMake target prim_check_<build>, run under several schedules.  One line per case, "ok", "skipped" or
// "WRONG" first; exit code 0 if none is wrong, 1 if one is, 3 if there is no device.
#include <cstdio>

#include "prim_kernels.cuh"

#if defined(__CUDACC__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using skv::prim_cases::Needs;
using skv::prim_cases::PrimCase;

#if defined(__CUDACC__)
int capability = 0;  // 80, 90, ...

bool find_device() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  capability = 10 * major + minor;
  return true;
}
int num_schedules() { return 2; }  // the second run finds whatever the first one left behind
void choose_schedule(int) {}

std::vector<uint32_t> run(const PrimCase& c, const std::vector<uint32_t>& in) {
  const auto check = skv::prim::check;
  std::vector<uint32_t> out(c.out_words);
  void *device_in = nullptr, *device_out = nullptr;
  check(cudaMalloc(&device_in, in.size() * 4), "cudaMalloc");
  check(cudaMalloc(&device_out, out.size() * 4), "cudaMalloc");
  check(cudaMemcpy(device_in, in.data(), in.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  check(cudaMemset(device_out, 0xff, out.size() * 4), "cudaMemset");
  c.launch(static_cast<const uint32_t*>(device_in), static_cast<uint32_t*>(device_out), nullptr);
  check(cudaMemcpy(out.data(), device_out, out.size() * 4, cudaMemcpyDeviceToHost), c.name);
  check(cudaFree(device_in), "cudaFree");
  check(cudaFree(device_out), "cudaFree");
  return out;
}
#else
const int capability = 90;

bool find_device() {
  simt::report_faults();
  return true;
}
int num_schedules() { return 6; }
void choose_schedule(int i) { simt::set_seed(simt::u64(i)); }

std::vector<uint32_t> run(const PrimCase& c, const std::vector<uint32_t>& in) {
  const auto guarded = [](size_t words) {
    return static_cast<uint32_t*>(simt::map_guarded((words + 3) / 4 * 16));
  };
  uint32_t *device_in = guarded(in.size()), *device_out = guarded(c.out_words);
  std::memcpy(device_in, in.data(), in.size() * 4);
  c.launch(device_in, device_out, nullptr);
  std::vector<uint32_t> out(device_out, device_out + c.out_words);
  simt::unmap_guarded(device_in, (in.size() + 3) / 4 * 16);
  simt::unmap_guarded(device_out, (out.size() + 3) / 4 * 16);
  return out;
}
#endif

bool can_run(Needs needs) {
  return needs == Needs::kAmpere   ? capability >= 80
         : needs == Needs::kHopper ? capability >= 90
                                   : capability == 90;
}

bool same(uint32_t got, uint32_t want, float relative_error) {
  if (got == want) return true;
  float g, w;
  std::memcpy(&g, &got, 4);
  std::memcpy(&w, &want, 4);
  return relative_error > 0 && std::fabs(g - w) <= relative_error * std::fabs(w);
}

bool passes(const PrimCase& c) {
  std::vector<uint32_t> in(c.in_words), want(c.out_words, ~0u);
  c.fill(in.data());
  c.expect(in.data(), want.data());
  for (int schedule = 0; schedule < num_schedules(); ++schedule) {
    choose_schedule(schedule);
    const std::vector<uint32_t> out = run(c, in);
    for (size_t i = 0; i < out.size(); ++i) {
      if (same(out[i], want[i], c.relative_error)) continue;
      std::printf("WRONG %s: word %zu of %zu is 0x%08x, expected 0x%08x\n", c.name, i, out.size(), out[i],
                  want[i]);
      return false;
    }
  }
  std::printf("ok %s\n", c.name);
  return true;
}

bool chosen(const PrimCase& c, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], c.name)) return true;
  }
  return argc == 1;
}

// 0: right or skipped, 1: wrong, 3: there is no device.
int check_case(const PrimCase& c) {
  if (!find_device()) {
    std::printf("no device\n");
    return 3;
  }
  if (!can_run(c.needs)) {
    std::printf("skipped %s: not for compute capability %d.%d\n", c.name, capability / 10, capability % 10);
    return 0;
  }
  try {
    return !passes(c);
  } catch (const std::exception& e) {
    std::printf("WRONG %s: %s\n", c.name, e.what());
    return 1;
  }
}

#if defined(__CUDACC__)
// In a process of its own: after a fault of a kernel a process gets no more work done on the device.
int check_apart(const PrimCase& c) {
  constexpr unsigned kMostSeconds = 20;
  const pid_t child = fork();
  if (child == 0) {
    alarm(kMostSeconds);
    const int code = check_case(c);
    std::fflush(stdout);
    _exit(code);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) < 0) throw std::runtime_error("no process for a case");
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  std::printf("WRONG %s: ended by signal %d\n", c.name, WTERMSIG(status));
  return 1;
}
#else
int check_apart(const PrimCase& c) { return check_case(c); }
#endif

}  // namespace

int main(int argc, char** argv) {
  int wrong = 0;
  for (const PrimCase& c : skv::prim_cases::prim_cases()) {
    if (!chosen(c, argc, argv)) continue;
    const int code = check_apart(c);
    std::fflush(stdout);
    if (code == 3) return 3;
    wrong += code != 0;
  }
  return wrong != 0;
}
