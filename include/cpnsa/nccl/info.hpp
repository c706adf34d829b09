#pragma once

#include "cpnsa/info.hpp"

namespace cpnsa::nccl {

/// NCCL, compiled and found.
LibraryVersion library_version();

}  // namespace cpnsa::nccl
