#pragma once

#include <algorithm>
#include <array>
#include <string_view>

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa::schema {

/// The names that other implementations of attention give to a soft cap of scores, cap * tanh(score / cap).
inline constexpr auto soft_cap_names =
    std::to_array<std::string_view>({"softcap", "soft_cap", "logit_cap", "logits_soft_cap", "attn_softcap",
                                     "logit_softcapping", "attn_logit_softcapping"});

/// The expectation, for a message, of a key that is known but that no kernel serves, e.g. "none: scores have no soft
/// cap"; empty for every other name.
constexpr std::string_view unavailable(std::string_view key) {
  const bool soft_cap = std::find(soft_cap_names.begin(), soft_cap_names.end(), key) != soft_cap_names.end();
  return soft_cap ? "none: scores have no soft cap (docs/algorithm.md)" : "";
}

}  // namespace cpnsa::schema
