#pragma once

#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// `cpnsa plan`, computed and printed by rank 0. Returns the exit status: 3 if the layers do not fit. Collective.
int plan(const PlanOptions& options, const RankPlace& place);

}  // namespace cpnsa::tool
