#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "haystack.hpp"
#include "retriever.hpp"

namespace needle {

/// Haystacks packed one after another, each a document.
struct Batch {
  std::vector<std::int64_t> cu_seqlens;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> previous;  ///< the token before each; a filler at the start of a document
  std::vector<std::int32_t> targets;   ///< the value asked for, or model::ignored

  explicit Batch(std::span<const Haystack> haystacks);

  Rows rows(std::span<const std::int64_t> positions) const;
  std::vector<std::int32_t> targets_at(std::span<const std::int64_t> positions) const;
  std::int64_t questions() const;
};

}  // namespace needle
