#pragma once

#include "tools/bench_report.hpp"
#include "tools/execution.hpp"
#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// The setting of a run on this device with every default decided, `hosts` not yet. Errors: ArgumentError, ConfigError.
BenchSetting bench_setting(const BenchOptions& options, Execution& execution, int ranks);

/// One rank's part of `cpnsa bench`. Collective: what is wrong on one rank is the same exception on every rank.
void bench(const BenchOptions& options, const RankPlace& place);

}  // namespace cpnsa::tool
