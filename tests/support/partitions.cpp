#include "tests/support/partitions.hpp"

#include <algorithm>
#include <utility>

namespace cpnsa::test {
namespace {

// The selection blocks of all documents.
std::vector<TokenRange> blocks_of(const Problem& problem) {
  std::vector<TokenRange> blocks;
  for (std::size_t document = 1; document < problem.cu_seqlens.size(); ++document)
    for (std::int64_t begin = problem.cu_seqlens[document - 1]; begin < problem.cu_seqlens[document];
         begin += problem.config.select_block)
      blocks.push_back({begin, std::min(begin + problem.config.select_block, problem.cu_seqlens[document])});
  return blocks;
}

}  // namespace

Partition random_partition(const Problem& problem, int ranks, Random& random) {
  std::vector<std::vector<TokenRange>> ranges(static_cast<std::size_t>(ranks));
  int owner = 0;
  for (const TokenRange& block : blocks_of(problem)) {
    if (random.chance(0.6)) owner = static_cast<int>(random.integer(0, ranks - 1));
    ranges[static_cast<std::size_t>(owner)].push_back(block);
  }
  for (auto& own : ranges)
    if (random.chance(0.3) && own.size() > 1)
      std::swap(own[0], own[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(own.size()) - 1))]);
  return Partition::custom(problem.cu_seqlens, problem.config.select_block, std::move(ranges));
}

std::string name_of(PartitionKind kind) {
  return kind == PartitionKind::custom ? "custom"
                                       : std::string(cpnsa::name_of(static_cast<cpnsa::PartitionKind>(kind)));
}

Partition make_partition(PartitionKind kind, const Problem& problem, int ranks) {
  const std::int64_t block = problem.config.select_block;
  if (kind != PartitionKind::custom)
    return Partition::make(static_cast<cpnsa::PartitionKind>(kind), problem.cu_seqlens, block, ranks);
  Random random(problem.seed);
  const Partition fewer = random_partition(problem, std::max(1, ranks - 1), random);
  std::vector<std::vector<TokenRange>> ranges;
  for (int rank = 0; rank < fewer.ranks(); ++rank)
    ranges.emplace_back(fewer.ranges(rank).begin(), fewer.ranges(rank).end());
  ranges.resize(static_cast<std::size_t>(ranks));
  return Partition::custom(problem.cu_seqlens, block, std::move(ranges));
}

}  // namespace cpnsa::test
