#pragma once

#include <string>

#include "cpnsa/attention.hpp"

namespace cpnsa {

/// What every rank must have been given alike; words, so that agree() can show the one that differs.
std::string fingerprint(const Config& config, const Partition& partition, const AttentionOptions& options);

}  // namespace cpnsa
