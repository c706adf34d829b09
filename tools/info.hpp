#pragma once

#include "tools/options.hpp"

namespace cpnsa::tool {

/// `cpnsa info`: prints what this build and this machine have, and the kernels of a configuration. ConfigError,
/// ArgumentError naming a flag.
void info(const InfoOptions& options);

}  // namespace cpnsa::tool
