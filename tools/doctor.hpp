#pragma once

#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// One rank's part of `cpnsa doctor`; rank 0 prints. Collective. Returns the exit status: 1 if a fault is serious.
int doctor(const DoctorOptions& options, const RankPlace& place);

}  // namespace cpnsa::tool
