#pragma once

#include "tools/options.hpp"

namespace cpnsa::tool {

/// `cpnsa plan --decode`: computes and prints. Returns the exit status: 3 if the layers do not fit.
int plan_decode(const PlanOptions& options);

}  // namespace cpnsa::tool
