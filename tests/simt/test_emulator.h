// What the two files of the emulator's self-test share.
#pragma once

#include <simt/buffer.h>

#include <cstdio>
#include <vector>

#include "prim.cuh"

struct PlantedParams {
  int* data;  // 128 entries, all 0
  uint32_t* flag;
};
struct PlantedBug {
  const char* name;
  void (*kernel)(PlantedParams);
  int ctas, threads;
  size_t smem;
  bool overlapped = false;
};
const std::vector<PlantedBug>& planted_bugs_hopper();

// Runs the planted bug of that name.  Returns 1 when nothing noticed; a report throws or ends the process.
int run_planted_bug(const char* name);
