// Every kernel file of csrc/cpu is compiled once per instruction set, into a namespace of its own (SKV_ISA is
// set by the build); csrc/cpu/dispatch.cpp picks one at run time.
//
// Such a file must not instantiate inline functions of the standard library that other files share: the
// linker keeps one copy of each, possibly the one compiled for a processor we are not on. Plain loops, our
// own templates (they live in the namespace) and intrinsics are safe.
#pragma once
#include "../core/backend.h"

#ifndef SKV_ISA
#define SKV_ISA portable
#endif
