#include "tools/decode_steps.hpp"

#include <algorithm>
#include <random>

namespace cpnsa::tool {
namespace {

struct Sequence {
  std::int64_t end;         ///< tokens in all
  std::int64_t prefill;     ///< tokens that are appended by chunks
  std::int64_t length = 0;  ///< tokens appended so far
  std::int64_t again = 0;   ///< tokens that it was cut back by
};

std::int64_t next_count(const Sequence& sequence, const DecodeFeed& feed) {
  if (sequence.again > 0) return sequence.again;
  const std::int64_t count =
      sequence.length < sequence.prefill ? std::min(feed.chunk, sequence.prefill - sequence.length) : feed.queries;
  return std::min(count, sequence.end - sequence.length);
}

}  // namespace

std::vector<std::vector<DecodePiece>> decode_steps(std::span<const std::int64_t> cu_seqlens, const DecodeFeed& feed) {
  std::mt19937_64 random(feed.seed);
  std::vector<Sequence> sequences;
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const std::int64_t end = cu_seqlens[i + 1] - cu_seqlens[i];
    sequences.push_back({end, std::min(end, feed.prefill.value_or(end / 2))});
  }
  std::vector<std::vector<DecodePiece>> steps;
  for (std::int64_t number = 1;; ++number) {
    std::vector<DecodePiece> pieces;
    bool repeats = false;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      Sequence& sequence = sequences[i];
      const std::int64_t count = next_count(sequence, feed);
      if (count == 0) continue;
      repeats = repeats || sequence.again > 0;
      pieces.push_back({static_cast<std::int64_t>(i), sequence.length, count});
      sequence.length += count;
      sequence.again = 0;
    }
    if (pieces.empty()) return steps;
    if (feed.truncate > 0 && number % 10 == 0 && !repeats)
      for (const DecodePiece& piece : pieces) {
        Sequence& sequence = sequences[static_cast<std::size_t>(piece.sequence)];
        const std::uint64_t drawn = random() % static_cast<std::uint64_t>(feed.truncate);
        sequence.again = std::min(sequence.length, 1 + static_cast<std::int64_t>(drawn));
        sequence.length -= sequence.again;
      }
    steps.push_back(std::move(pieces));
  }
}

}  // namespace cpnsa::tool
