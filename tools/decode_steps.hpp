#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace cpnsa::tool {

/// The tokens [begin, begin + count) of sequence `sequence`, appended in one step. A sequence that is longer than
/// `begin` is cut back to it first.
struct DecodePiece {
  std::int64_t sequence;
  std::int64_t begin;
  std::int64_t count;
};

/// How `cpnsa decode` feeds sequences to a cache.
struct DecodeFeed {
  std::optional<std::int64_t>
      prefill;                ///< tokens of each sequence that are appended by chunks; half of it unless given
  std::int64_t chunk = 256;   ///< tokens of a chunk, at most
  std::int64_t queries = 1;   ///< tokens a step after that
  std::int64_t truncate = 0;  ///< tokens that a sequence is cut back by after each tenth step, at most
  std::uint64_t seed = 1;
};

/// The steps' batches until all tokens of the documents of `cu_seqlens` have been appended. A sequence leaves the batch
/// when it has ended; an empty document never joins. Tokens that a sequence was cut back by are appended again in the
/// next step, in one piece.
std::vector<std::vector<DecodePiece>> decode_steps(std::span<const std::int64_t> cu_seqlens, const DecodeFeed& feed);

}  // namespace cpnsa::tool
