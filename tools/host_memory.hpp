#pragma once

#include <cstdint>

namespace cpnsa::tool {

/// Bytes of host memory that this process can still get: the machine's, or its control group's where that has less; -1
/// where the system does not say.
std::int64_t available_host_memory();

/// Throws ArgumentError unless the host has memory for `ranks` ranks that take `bytes_per_rank` each.
void check_host_memory(std::int64_t ranks, double bytes_per_rank);

}  // namespace cpnsa::tool
