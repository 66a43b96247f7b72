// BlockPool, RadixTree and DraftIndex of the module, each on its own.
#pragma once

#include <pybind11/pybind11.h>

namespace skv::python {

void define_parts(pybind11::module_& m);

}  // namespace skv::python
