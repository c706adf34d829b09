// Bounds of documents and a number of ranks, as 64-bit numbers: a partition in which every token has one owner, or an
// error.

#include "cpnsa/partition.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpnsa/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace cpnsa;
  std::vector<std::int64_t> numbers(std::min<std::size_t>(size / sizeof(std::int64_t), 64));
  if (numbers.size() < 3) return 0;
  std::memcpy(numbers.data(), data, numbers.size() * sizeof(std::int64_t));
  const std::int64_t select_block = numbers[0];
  const auto ranks = static_cast<int>(std::clamp<std::int64_t>(numbers[1], -2, 64));
  const std::vector<std::int64_t> bounds(numbers.begin() + 2, numbers.end());
  // A partition of valid bounds takes time and memory for each block; the largest have tests of their own.
  if (select_block > 0 && bounds.back() / select_block > 10000 && bounds.back() <= Partition::max_tokens) return 0;
  for (const PartitionKind kind :
       {PartitionKind::contiguous, PartitionKind::zigzag, PartitionKind::zigzag_per_document}) {
    try {
      const Partition partition = Partition::make(kind, bounds, select_block, ranks);
      std::vector<TokenRange> all;
      for (int rank = 0; rank < partition.ranks(); ++rank)
        for (const TokenRange& range : partition.ranges(rank)) all.push_back(range);
      std::sort(all.begin(), all.end(), [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
      std::int64_t next = 0;
      for (const TokenRange& range : all) {
        if (range.begin != next || range.end <= range.begin) std::abort();
        next = range.end;
      }
      if (next != partition.tokens()) std::abort();
    } catch (const Error&) {  // refused
    }
  }
  return 0;
}
