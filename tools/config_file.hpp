#pragma once

#include <filesystem>

#include "cpnsa/config.hpp"

namespace cpnsa::tool {

/// Reads config.json: an object whose keys are Config's members. The head counts and dimensions are required, the rest
/// has defaults. The widths of the mlp compressors are the parameters' to say and stay 0. ArgumentError naming the
/// file, the key, the value found and the value expected; Config::validate is left to the caller.
Config read_config(const std::filesystem::path& path);

}  // namespace cpnsa::tool
