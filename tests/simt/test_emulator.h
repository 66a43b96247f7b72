// What the two files of the emulator's self-test share.
#pragma once

#include <simt/buffer.h>

#include <cstdio>

#include "prim.cuh"

// Runs the planted bug of that name.  Returns 1 when nothing noticed; a report throws or ends the process.
int run_planted_bug(const char* name);
