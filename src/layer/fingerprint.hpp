#pragma once

#include <string>

#include "cpnsa/attention.hpp"

namespace cpnsa {

/// The configuration, sequence and options that every rank must have been given alike, as words: agree() shows the
/// first word that differs.
std::string fingerprint(const Config& config, const Partition& partition, const AttentionOptions& options);

}  // namespace cpnsa
