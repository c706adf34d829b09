#pragma once

#include "cpnsa/config.hpp"
#include "cpnsa/dtype.hpp"

namespace cpnsa::cuda {

/// Throws UnsupportedError, naming what was found and listing what is supported, unless every stage has a kernel for
/// this configuration and type.
void check_limits(const Config& config, DType dtype);

}  // namespace cpnsa::cuda
