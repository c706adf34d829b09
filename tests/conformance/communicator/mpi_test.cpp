// Tests of the MPI communicator alone: borrowed communicators, and messages longer than an MPI count.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "comm/mpi/communicator.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::test {
namespace {

using ::testing::HasSubstr;

TEST(Split, CoversEveryByteInOrder) {
  EXPECT_TRUE(mpi::split(0, 10).empty());
  for (const std::size_t bytes : {1, 9, 10, 11, 20, 25}) {
    std::size_t end = 0;
    for (const mpi::Chunk& chunk : mpi::split(bytes, 10)) {
      EXPECT_EQ(chunk.offset, end);
      EXPECT_GT(chunk.bytes, 0);
      EXPECT_LE(chunk.bytes, 10);
      end += static_cast<std::size_t>(chunk.bytes);
    }
    EXPECT_EQ(end, bytes);
  }
}

TEST(Split, MessagesLongerThanMpiCounts) {
  const std::size_t bytes = 5 * mpi::MpiCommunicator::max_message_bytes + 7;
  ASSERT_GT(bytes, std::numeric_limits<std::uint32_t>::max());
  const std::vector<mpi::Chunk> chunks = mpi::split(bytes, mpi::MpiCommunicator::max_message_bytes);
  ASSERT_EQ(chunks.size(), 6u);
  EXPECT_EQ(chunks[4].offset, 4 * mpi::MpiCommunicator::max_message_bytes);
  EXPECT_EQ(chunks[4].bytes, 1 << 30);
  EXPECT_EQ(chunks[5].bytes, 7);
}

TEST(MpiCommunicator, StandsApartFromItsParentAndLeavesIt) {
  MPI_Comm parent = MPI_COMM_NULL;
  ASSERT_EQ(MPI_Comm_dup(MPI_COMM_WORLD, &parent), MPI_SUCCESS);
  {
    const auto first = mpi::make_communicator(parent), second = mpi::make_communicator(parent);
    first->abort("the disk is full");
    second->barrier();
    EXPECT_THROW(first->barrier(), CommunicationError);
  }
  const auto third = mpi::make_communicator(parent);
  third->barrier();
  EXPECT_EQ(MPI_Barrier(parent), MPI_SUCCESS);
  EXPECT_EQ(MPI_Comm_free(&parent), MPI_SUCCESS);
}

// The ranks of a subset of the world are numbered within the subset.
TEST(MpiCommunicator, TakesAnyIntracommunicator) {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm half = MPI_COMM_NULL;
  ASSERT_EQ(MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half), MPI_SUCCESS);
  const auto communicator = mpi::make_communicator(half);
  EXPECT_EQ(communicator->size(), (size + 1 - rank % 2) / 2);
  std::vector<int> all(static_cast<std::size_t>(communicator->size()));
  communicator->all_gather_host(&rank, all.data(), sizeof rank);
  EXPECT_EQ(all[static_cast<std::size_t>(communicator->rank())], rank);
  EXPECT_TRUE(std::is_sorted(all.rbegin(), all.rend()));
  EXPECT_EQ(MPI_Comm_free(&half), MPI_SUCCESS);
}

TEST(MpiCommunicator, RefusesNoCommunicator) {
  try {
    mpi::make_communicator(MPI_COMM_NULL);
    ADD_FAILURE() << "nothing thrown";
  } catch (const ArgumentError& error) {
    EXPECT_THAT(error.what(), HasSubstr("MPI_COMM_NULL"));
  }
}

}  // namespace
}  // namespace cpnsa::test
