#pragma once

#include <cstdint>

#include "cpnsa/config.hpp"
#include "tools/flags.hpp"

namespace cpnsa::tool {

/// A flag for each key of a configuration, by its name and by the short ones of `cpnsa bench`; counts and dimensions of
/// heads that are not given stay 0. `hidden` is the width of both mlp compressors.
void add_config(Flags& flags, Config& config, std::int64_t& hidden);

}  // namespace cpnsa::tool
