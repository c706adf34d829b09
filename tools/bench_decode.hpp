#pragma once

#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// One rank's part of `cpnsa bench --decode`. Collective: what is wrong on one rank is the same exception on every
/// rank.
void bench_decode(const BenchOptions& options, const RankPlace& place);

}  // namespace cpnsa::tool
