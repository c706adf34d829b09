// A step's traffic statistics compared with the plan's prediction, the selected indices and the calls that it made.

#include <numeric>
#include <set>

#include "src/planning/layout.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/seeds.hpp"
#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(StatisticsOfSteps);

std::int64_t of(const std::array<std::int64_t, traffic_kinds>& bytes, Traffic kind) {
  return bytes[static_cast<std::size_t>(kind)];
}

// The number of (block, KV head) pairs that the rank's rows selected and other ranks own.
std::set<std::pair<std::int64_t, std::int64_t>> demand_of(const Problem& problem, const Partition& partition, int rank,
                                                          const std::vector<std::int32_t>& selected) {
  std::set<std::int64_t> own;  // the first tokens of own blocks
  for (const std::int64_t token : partition.global_rows(rank)) own.insert(token);
  std::set<std::pair<std::int64_t, std::int64_t>> demand;
  const Config& config = problem.config;
  for (const std::int64_t token : partition.global_rows(rank))
    for (std::int64_t group = 0; group < config.num_kv_heads; ++group)
      for (std::int64_t slot = 0; slot < config.select_count; ++slot) {
        const std::int64_t at = (token * config.num_kv_heads + group) * config.select_count + slot;
        const std::int32_t block = selected[static_cast<std::size_t>(at)];
        if (block < 0) continue;
        const std::int64_t first = document_of(problem.cu_seqlens, token).begin + block * config.select_block;
        if (!own.contains(first)) demand.emplace(first, group);
      }
  return demand;
}

TEST_P(StatisticsOfSteps, EqualThePredictionAndTheDemand) {
  const DType dtype = widest_dtype();
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const auto accumulated = static_cast<std::int64_t>(size_of(accumulate_dtype(dtype)));
  for (const std::uint64_t seed : seeds(15)) {
    const Problem problem = random_problem(4000 + seed, 200, device().dim_step);
    const Config& config = problem.config;
    if (!supported(config, dtype)) continue;
    SCOPED_TRACE(describe(problem));
    const std::int64_t slot = config.select_block * (config.head_dim_qk + config.head_dim_v);
    for (const int ranks : rank_counts())
      for (const PartitionKind kind : partition_kinds)
        for (const Exchange exchange : exchanges()) {
          SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks, " + std::string(name_of(exchange)));
          const Partition partition = make_partition(kind, problem, ranks);
          const planning::Layout layout(config, partition);
          const LayerResult result = run(problem, partition, {.dtype = dtype, .exchange = exchange});
          ASSERT_EQ(result.statistics.size(), static_cast<std::size_t>(ranks));
          std::int64_t received = 0, returned = 0;
          for (int rank = 0; rank < ranks; ++rank) {
            const Statistics& statistics = result.statistics[static_cast<std::size_t>(rank)];
            const auto& bytes = statistics.bytes_received;
            ASSERT_EQ(bytes, statistics.bytes_predicted) << "rank " << rank;
            ASSERT_EQ(statistics.exchange, result.statistics[0].exchange);
            ASSERT_NE(statistics.exchange, Exchange::automatic);
            ASSERT_TRUE(exchange == Exchange::automatic || statistics.exchange == exchange);
            const auto needed = static_cast<std::int64_t>(demand_of(problem, partition, rank, result.selected).size());
            ASSERT_EQ(statistics.blocks_needed, needed) << "rank " << rank;
            ASSERT_EQ(statistics.blocks_fetched,
                      statistics.exchange == Exchange::gather
                          ? static_cast<std::int64_t>(layout.reachable_blocks(rank).size()) * config.num_kv_heads
                          : needed);
            ASSERT_EQ(of(bytes, Traffic::blocks), statistics.blocks_fetched * slot * element);
            ASSERT_EQ(of(bytes, Traffic::refetched_blocks), statistics.blocks_fetched * slot * element);
            ASSERT_EQ(of(bytes, Traffic::summaries),
                      (layout.summaries - layout.own_summaries[static_cast<std::size_t>(rank)]) * config.num_kv_heads *
                          (config.head_dim_qk + config.head_dim_v) * element);
            ASSERT_GT(statistics.workspace_bytes, 0);
            for (const double seconds : statistics.seconds) ASSERT_EQ(seconds, 0);
            received += statistics.blocks_fetched;
            returned += of(bytes, Traffic::block_gradients);
          }
          ASSERT_EQ(returned, received * slot * accumulated) << "a gradient for every block that was fetched";
        }
  }
}

// A communicator that counts the bytes received.
class CountingCommunicator final : public WrappedCommunicator {
 public:
  using WrappedCommunicator::WrappedCommunicator;
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override {
    for (const ReceiveMessage& receive : receives) received += static_cast<std::int64_t>(receive.bytes);
    WrappedCommunicator::exchange(sends, receives, device, stream);
  }
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override {
    received += static_cast<std::int64_t>(std::accumulate(bytes.begin(), bytes.end(), std::size_t{0}) -
                                          bytes[static_cast<std::size_t>(rank())]);
    WrappedCommunicator::all_gather(own, all, bytes, device, stream);
  }
  void all_gather_host(const void* own, void* all, std::size_t bytes) override {
    received += static_cast<std::int64_t>(bytes) * (size() - 1);
    WrappedCommunicator::all_gather_host(own, all, bytes);
  }
  std::int64_t received = 0;
};

TEST_P(StatisticsOfSteps, CountEveryByteThatArrives) {
  const DType dtype = widest_dtype();
  for (const std::uint64_t seed : seeds(10)) {
    const Problem problem = random_problem(5000 + seed, 200, device().dim_step);
    if (!supported(problem.config, dtype)) continue;
    SCOPED_TRACE(describe(problem));
    for (const int ranks : rank_counts())
      for (const bool sum : {false, true}) {
        const Partition partition = make_partition(partition_kinds[seed % 4], problem, ranks);
        const LayerSetting setting{.dtype = dtype, .sum_parameter_gradients = sum};
        on_ranks(ranks, [&](Communicator& communicator, Device& own) {
          CountingCommunicator counting(communicator);
          Attention layer(problem.config, partition, own, counting, options_of(setting));
          RankTensors tensors(problem, partition, counting.rank(), setting, own);
          LayerMemory memory(layer, own);
          counting.received = 0;
          layer.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
          layer.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
          const Statistics statistics = layer.statistics();
          EXPECT_EQ(
              std::accumulate(statistics.bytes_received.begin(), statistics.bytes_received.end(), std::int64_t{0}),
              counting.received);
          EXPECT_EQ(statistics.bytes_received, statistics.bytes_predicted);
        });
      }
  }
}

TEST_P(StatisticsOfSteps, TimeEveryStageWhenAsked) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 200}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts()) {
    const LayerResult result = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype, .timing = true});
    for (const Statistics& statistics : result.statistics)
      for (const Stage stage : {Stage::compress, Stage::window, Stage::compressed, Stage::select, Stage::selected,
                                Stage::combine, Stage::combine_backward, Stage::window_backward,
                                Stage::selected_backward, Stage::compressed_backward, Stage::compress_backward})
        EXPECT_GT(statistics.seconds[static_cast<std::size_t>(stage)], 0) << name_of(stage);
  }
}

}  // namespace
}  // namespace cpnsa::test
