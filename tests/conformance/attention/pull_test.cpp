// Exchange::pull: the ranks read each other's windows. It gives the bits of `fetch` and moves the same bytes; a rank
// may need every block, lag, fail, or not come.

#include <gmock/gmock.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "cpnsa/error.hpp"
#include "src/planning/layout.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/numbers.hpp"
#include "tests/support/one_sided_communicator.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;

CPNSA_ATTENTION_SUITE(Pull);

std::array<std::int64_t, traffic_kinds> without_control(std::array<std::int64_t, traffic_kinds> bytes) {
  bytes[static_cast<std::size_t>(Traffic::control)] = 0;
  return bytes;
}

TEST_P(Pull, NeedsRanksThatReadEachOthersMemory) {
  if (transport().one_sided) return;
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 100}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
      try {
        Attention(problem.config, partition, own, communicator,
                  options_of({.dtype = dtype, .exchange = Exchange::pull}));
        ADD_FAILURE() << "found a layer, expected UnsupportedError";
      } catch (const UnsupportedError& error) {
        EXPECT_THAT(error.what(), HasSubstr("exchange: found pull over " + std::string(communicator.name())));
      }
    });
}

TEST_P(Pull, GivesTheBitsOfFetchForTheSameBytes) {
  if (!transport().one_sided) return;
  for (const std::uint64_t seed : seeds(device().is_slow ? 1 : 12)) {
    const DType dtype = seed % 2 ? device().dtypes.back() : widest_dtype();
    const Problem problem = rounded(random_problem(7000 + seed, 200, device().dim_step), dtype);
    if (!supported(problem.config, dtype)) continue;
    for (const int ranks : rank_counts(2)) {
      const PartitionKind kind = partition_kinds[(seed + static_cast<std::uint64_t>(ranks)) % 4];
      SCOPED_TRACE(describe(problem) + ", " + name_of(kind) + ", " + std::to_string(ranks) + " ranks");
      const LayerResult fetched = run(problem, kind, ranks, {.dtype = dtype, .exchange = Exchange::fetch});
      const LayerResult pulled = run(problem, kind, ranks, {.dtype = dtype, .exchange = Exchange::pull});
      ASSERT_TRUE(same_bits(fetched, pulled));
      for (std::size_t rank = 0; rank < fetched.statistics.size(); ++rank) {
        const Statistics &expected = fetched.statistics[rank], &found = pulled.statistics[rank];
        ASSERT_EQ(without_control(found.bytes_received), without_control(expected.bytes_received)) << "rank " << rank;
        ASSERT_EQ(found.blocks_fetched, expected.blocks_needed) << "rank " << rank;
      }
    }
  }
}

TEST_P(Pull, EveryRankMayNeedEveryBlock) {
  if (!transport().one_sided || device().is_slow) return;
  const DType dtype = widest_dtype();
  Config config = small_config();
  config.select_count = 64;  // more than there are blocks
  const Problem problem = rounded(make_problem(config, {0, 130, 200}, 3), dtype);
  if (!supported(config, dtype)) return;
  for (const int ranks : rank_counts(2))
    for (const bool refetch : {true, false}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks");
      const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
      const LayerResult result = run(problem, partition,
                                     {.dtype = dtype,
                                      .exchange = Exchange::pull,
                                      .refetch_blocks = refetch,
                                      .recompute_branches = true,
                                      .gradient_dtype = {}});
      const Truth truth(problem, dtype, result.selected);
      ASSERT_TRUE(truth.out_agrees(result.out));
      ASSERT_TRUE(truth.gradients_agree(result.gradients));
      const planning::Layout layout(config, partition);
      std::int64_t all = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto reachable = static_cast<std::int64_t>(layout.reachable_blocks(rank).size());
        ASSERT_EQ(result.statistics[static_cast<std::size_t>(rank)].blocks_fetched, reachable * config.num_kv_heads);
        all += reachable;
      }
      ASSERT_GT(all, 0);
    }
}

/// A rank's layer over a communicator that calls `before` ahead of each one-sided operation.
struct PullingLayer {
  PullingLayer(const Problem& problem, DType dtype, Communicator& inner, Device& device, std::function<void()> before)
      : communicator(inner, std::move(before)),
        setting{.dtype = dtype, .exchange = Exchange::pull, .gradient_dtype = {}},
        partition(make_partition(PartitionKind::zigzag, problem, inner.size())),
        attention(problem.config, partition, device, communicator, options_of(setting)),
        tensors(problem, partition, inner.rank(), setting, device),
        memory(attention, device) {}

  void forward() {
    attention.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
  }
  void backward() {
    attention.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
  }

  OneSidedCommunicator communicator;
  LayerSetting setting;
  Partition partition;
  Attention attention;
  RankTensors tensors;
  LayerMemory memory;
};

TEST_P(Pull, WaitsForARankThatLags) {
  if (!transport().one_sided || device().is_slow) return;
  const DType dtype = widest_dtype();
  const Problem problem = rounded(make_problem(small_config(), {0, 93, 160}, 4), dtype);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2)) {
    if (ranks > 4) continue;
    const LayerResult expected = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype});
    for (int lags = 0; lags < ranks; ++lags) {
      SCOPED_TRACE("rank " + std::to_string(lags) + " of " + std::to_string(ranks));
      on_ranks(ranks, [&](Communicator& inner, Device& own) {
        Random random(static_cast<std::uint64_t>(ranks));
        const auto pause = [&] {
          if (inner.rank() == lags) std::this_thread::sleep_for(std::chrono::microseconds(random.integer(0, 1500)));
        };
        PullingLayer layer(problem, dtype, inner, own, pause);
        for (int repeat = 0; repeat < 3; ++repeat) {  // whose windows lie in the same memory
          layer.memory.poison_workspace();
          layer.forward();
          own.synchronize(Stream{});
          layer.memory.poison_workspace();  // in which the backward shows the keys and values again
          layer.backward();
          own.synchronize(Stream{});
        }
        own.synchronize(Stream{});
        const LayerResult found = collect(problem, layer.partition, layer.setting, layer.tensors,
                                          layer.attention.statistics(), layer.communicator);
        EXPECT_TRUE(same_bits(expected, found));
      });
    }
  }
}

TEST_P(Pull, ARankThatThrowsReleasesTheOthers) {
  if (!transport().one_sided || device().is_slow) return;
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 93, 160}, 5);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : {2, 4}) {
    bool failed = true;
    for (int operation = 0; failed; ++operation) {
      SCOPED_TRACE("operation " + std::to_string(operation) + ", " + std::to_string(ranks) + " ranks");
      std::atomic<bool> threw = false;
      on_ranks(ranks, [&](Communicator& inner, Device& own) {
        const bool fails = inner.rank() == 1;
        int left = operation;
        const auto fail = [&] {
          if (!fails || left-- != 0) return;
          threw = true;
          throw DeviceError("the GPU fell off the bus");
        };
        try {  // all memory is freed at once when a step throws
          PullingLayer layer(problem, dtype, inner, own, fail);
          layer.forward();
          layer.backward();
          inner.barrier();
          EXPECT_FALSE(threw) << "rank " << inner.rank() << " did not learn of the failure";
        } catch (const DeviceError& error) {
          EXPECT_TRUE(fails) << error.what();
        } catch (const CommunicationError& error) {
          EXPECT_FALSE(fails);
          EXPECT_THAT(error.what(), HasSubstr("rank 1 gave up: the GPU fell off the bus"));
        }
      });
      if (HasFailure()) return;
      failed = threw;
      ASSERT_TRUE(failed || operation > 15) << "a forward and a backward have more operations";
    }
  }
}

TEST_P(Pull, ARankThatDoesNotComeIsNamed) {
  if (!transport().one_sided || device().is_slow) return;
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 93, 160}, 6);
  if (!supported(problem.config, dtype)) return;
  std::atomic<bool> over = false;
  on_ranks(2, [&](Communicator& inner, Device& own) {
    bool stops = false;
    const auto stop = [&] {
      while (stops && !over) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    const auto step = [&] {
      PullingLayer layer(problem, dtype, inner, own, stop);
      layer.forward();
      inner.set_deadline(std::chrono::milliseconds(500));
      stops = inner.rank() == 1;
      layer.backward();
    };
    try {
      step();
      ADD_FAILURE() << "rank " << inner.rank() << ": found no error, expected DeadlineError";
    } catch (const DeadlineError& error) {
      EXPECT_THAT(error.what(), HasSubstr("waited 500 ms for rank 1"));
      EXPECT_THAT(error.what(), HasSubstr("backward of layer 1, call 2"));
    }
    over = true;
  });
}

}  // namespace
}  // namespace cpnsa::test
