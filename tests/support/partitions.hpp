#pragma once

#include <string>
#include <vector>

#include "cpnsa/partition.hpp"
#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// Assigns every block to a random rank, in random order; ranks may have no tokens, or rows in descending order.
Partition random_partition(const Problem& problem, int ranks, Random& random);

/// The library's kinds in their order, and a random one.
enum class PartitionKind { contiguous, zigzag, zigzag_per_document, custom };
inline constexpr PartitionKind partition_kinds[] = {PartitionKind::contiguous, PartitionKind::zigzag,
                                                    PartitionKind::zigzag_per_document, PartitionKind::custom};
std::string name_of(PartitionKind kind);

/// `custom` is a random partition by the problem's seed; with several ranks, the last one owns nothing.
Partition make_partition(PartitionKind kind, const Problem& problem, int ranks);

}  // namespace cpnsa::test
