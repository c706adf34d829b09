#include "cpnsa/partition.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>

#include "cpnsa/error.hpp"
#include "tests/support/partitions.hpp"

namespace cpnsa::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<TokenRange> ranges_of(const Partition& partition, int rank) {
  return {partition.ranges(rank).begin(), partition.ranges(rank).end()};
}

TEST(Partition, ContiguousRanksOwnWholeBlocks) {
  const Partition partition = Partition::contiguous(cu_seqlens_of({22}), 4, 3);  // 5 blocks and a half one
  EXPECT_EQ(partition.ranks(), 3);
  EXPECT_EQ(partition.tokens(), 22);
  EXPECT_THAT(ranges_of(partition, 0), ElementsAre(TokenRange{0, 8}));
  EXPECT_THAT(ranges_of(partition, 1), ElementsAre(TokenRange{8, 16}));
  EXPECT_THAT(ranges_of(partition, 2), ElementsAre(TokenRange{16, 22}));
}

TEST(Partition, ZigzagPairsEarlyAndLateChunks) {
  const Partition partition = Partition::zigzag(cu_seqlens_of({32}), 4, 2);
  EXPECT_THAT(ranges_of(partition, 0), ElementsAre(TokenRange{0, 8}, TokenRange{24, 32}));
  EXPECT_THAT(ranges_of(partition, 1), ElementsAre(TokenRange{8, 24}));
  EXPECT_THAT(partition.local_tokens(0), 16);
}

TEST(Partition, ZigzagPerDocumentDealsEveryDocument) {
  const Partition partition = Partition::zigzag_per_document(cu_seqlens_of({16, 16}), 4, 2);
  EXPECT_THAT(ranges_of(partition, 0), ElementsAre(TokenRange{0, 4}, TokenRange{12, 20}, TokenRange{28, 32}));
  EXPECT_THAT(ranges_of(partition, 1), ElementsAre(TokenRange{4, 12}, TokenRange{20, 28}));
}

TEST(Partition, MoreRanksThanBlocksLeavesSomeWithNothing) {
  const Partition partition = Partition::contiguous(cu_seqlens_of({3}), 4, 8);
  std::int64_t tokens = 0;
  for (int rank = 0; rank < 8; ++rank) tokens += partition.local_tokens(rank);
  EXPECT_EQ(tokens, 3);
}

TEST(Partition, BlockGridRestartsAtEachDocument) {
  // Document 1 begins at token 3, so token 7 is a block boundary and token 8 is none.
  const auto documents = cu_seqlens_of({3, 9});
  EXPECT_NO_THROW(Partition::custom(documents, 4, {{{0, 7}}, {{7, 12}}}));
  EXPECT_THROW(Partition::custom(documents, 4, {{{0, 8}}, {{8, 12}}}), ArgumentError);
}

TEST(Partition, CustomKeepsTheCallersOrder) {
  const Partition partition = Partition::custom(cu_seqlens_of({16}), 4, {{{8, 12}, {0, 4}}, {{12, 16}, {4, 8}}, {}});
  EXPECT_THAT(partition.global_rows(0), ElementsAre(8, 9, 10, 11, 0, 1, 2, 3));
  EXPECT_THAT(partition.global_rows(2), ElementsAre());
}

TEST(Partition, EveryTokenHasOneOwnerAndBoundsAreBlockBounds) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const Problem problem = random_problem(seed, 200);
    SCOPED_TRACE(describe(problem));
    for (const int ranks : {1, 2, 3, 8})
      for (const PartitionKind kind : partition_kinds) {
        const Partition partition = make_partition(kind, problem, ranks);
        std::vector<int> owners(static_cast<std::size_t>(problem.tokens()));
        for (int rank = 0; rank < ranks; ++rank) {
          const std::vector<std::int64_t> rows = partition.global_rows(rank);
          ASSERT_EQ(static_cast<std::int64_t>(rows.size()), partition.local_tokens(rank));
          for (const std::int64_t token : rows) ++owners[static_cast<std::size_t>(token)];
          for (const TokenRange& range : partition.ranges(rank))
            for (const std::int64_t bound : {range.begin, range.end}) {
              if (bound == problem.tokens()) continue;
              const Document document = document_of(problem.cu_seqlens, bound);
              ASSERT_EQ((bound - document.begin) % problem.config.select_block, 0) << name_of(kind);
            }
        }
        ASSERT_THAT(owners, testing::Each(1)) << name_of(kind) << ", " << ranks << " ranks";
      }
  }
}

TEST(Partition, BuiltInSizesAreEven) {
  const auto documents = cu_seqlens_of({1000});
  for (const int ranks : {2, 3, 5, 7})
    for (const Partition& partition :
         {Partition::contiguous(documents, 8, ranks), Partition::zigzag(documents, 8, ranks)})
      for (int rank = 0; rank < ranks; ++rank)
        EXPECT_NEAR(static_cast<double>(partition.local_tokens(rank)), 1000.0 / ranks, 16) << rank << " of " << ranks;
}

TEST(Partition, GatherUndoesScatter) {
  const Problem problem = random_problem(5, 200);
  std::vector<std::int32_t> packed(static_cast<std::size_t>(3 * problem.tokens()));
  std::iota(packed.begin(), packed.end(), 0);
  const std::size_t row_bytes = 3 * sizeof(std::int32_t);
  const Partition partition = make_partition(PartitionKind::custom, problem, 4);
  std::vector<std::int32_t> back(packed.size(), -1);
  for (int rank = 0; rank < 4; ++rank) {
    const std::vector<std::int64_t> rows = partition.global_rows(rank);
    std::vector<std::int32_t> local(3 * rows.size());
    partition.scatter(packed.data(), local.data(), rank, row_bytes);
    for (std::size_t row = 0; row < rows.size(); ++row) EXPECT_EQ(local[3 * row + 1], 3 * rows[row] + 1);
    partition.gather(local.data(), back.data(), rank, row_bytes);
  }
  EXPECT_EQ(back, packed);
}

TEST(Partition, RejectsBadDocuments) {
  const auto contiguous = [](std::vector<std::int64_t> bounds, std::int64_t block, int ranks) {
    return [=] { Partition::contiguous(bounds, block, ranks); };
  };
  EXPECT_THROW(contiguous({}, 4, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({0}, 4, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({0, 0}, 4, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({1, 5}, 4, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({0, 5, 3}, 4, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({0, 5}, 0, 1)(), ArgumentError);
  EXPECT_THROW(contiguous({0, 5}, 4, 0)(), ArgumentError);
  EXPECT_NO_THROW(contiguous({0, 0, 5, 5}, 4, 1)());
}

TEST(Partition, RejectsRangesThatAreNoPartition) {
  const auto documents = cu_seqlens_of({16});
  const auto custom = [&](std::vector<std::vector<TokenRange>> ranges) {
    return [&documents, ranges] { Partition::custom(documents, 4, ranges); };
  };
  EXPECT_THAT(custom({{{0, 8}}, {{6, 16}}}), ThrowsMessage<ArgumentError>(HasSubstr("rank 1")));   // off the grid
  EXPECT_THAT(custom({{{0, 8}}, {{4, 16}}}), ThrowsMessage<ArgumentError>(HasSubstr("rank 1")));   // two owners
  EXPECT_THAT(custom({{{0, 8}}, {{12, 16}}}), ThrowsMessage<ArgumentError>(HasSubstr("rank 1")));  // a gap
  EXPECT_THAT(custom({{{0, 8}}, {{8, 20}}}), ThrowsMessage<ArgumentError>(HasSubstr("rank 1")));   // past the end
  EXPECT_THROW(custom({{{0, 8}}, {{8, 12}}})(), ArgumentError);                                    // not all owned
  EXPECT_THROW(custom({{{8, 0}}, {{8, 16}}})(), ArgumentError);                                    // reversed
  EXPECT_THROW(custom({})(), ArgumentError);
}

TEST(Partition, SizesAreBoundedBeforeAnythingIsAllocated) {
  for (const std::int64_t tokens : {Partition::max_tokens + 1, std::int64_t{1} << 40, std::int64_t{1} << 62})
    for (const std::int64_t block : {std::int64_t{1}, std::int64_t{64}, std::int64_t{1} << 62}) {
      const std::vector<std::int64_t> documents{0, tokens};
      EXPECT_THAT([&] { Partition::zigzag(documents, block, 4); },
                  ThrowsMessage<ArgumentError>(HasSubstr(std::to_string(tokens) + " tokens, expected at most")));
    }
  EXPECT_THAT(
      [] {
        Partition::contiguous(std::vector<std::int64_t>{0, 8}, 4, 1 << 30);
      },
      ThrowsMessage<ArgumentError>(HasSubstr("ranks: found")));
}

TEST(Partition, ABlockMayBeLongerThanAnyDocument) {
  const std::int64_t longest = std::numeric_limits<std::int64_t>::max();
  const Partition partition = Partition::contiguous(cu_seqlens_of({5, 9}), longest, 2);
  EXPECT_EQ(partition.local_tokens(0) + partition.local_tokens(1), 14);
}

}  // namespace
}  // namespace cpnsa::test
