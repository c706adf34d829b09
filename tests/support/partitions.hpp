#pragma once

#include <string>
#include <vector>

#include "cpnsa/partition.hpp"
#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// Every block to any rank, in any order: ranks without tokens and rows in descending order among them.
Partition random_partition(const Problem& problem, int ranks, Random& random);

enum class PartitionKind { contiguous, zigzag, zigzag_per_document, custom };
inline constexpr PartitionKind partition_kinds[] = {PartitionKind::contiguous, PartitionKind::zigzag,
                                                    PartitionKind::zigzag_per_document, PartitionKind::custom};
std::string name_of(PartitionKind kind);

/// `custom` is a random partition of the problem's seed whose last rank owns nothing, if there are several.
Partition make_partition(PartitionKind kind, const Problem& problem, int ranks);

}  // namespace cpnsa::test
