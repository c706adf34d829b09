// The record of a step: that its spans are those of the statistics, on every rank, and what is written of it.

#include "cpnsa/step_record.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cpnsa/error.hpp"
#include "tests/conformance/attention/attention_test.hpp"

namespace cpnsa::test {
namespace {

using nlohmann::json;

CPNSA_ATTENTION_SUITE(StepRecords);

constexpr double rounding = 1e-5;  // of a stage's spans, in seconds: a GPU's clock ticks twice in a microsecond

void check_spans(const StepRecord& record) {
  std::array<double, stage_count> seconds{};
  std::int64_t bytes = 0;
  for (const StageSpan& span : record.spans) {
    EXPECT_GE(span.begin, 0) << name_of(span.stage);
    EXPECT_GE(span.end, span.begin) << name_of(span.stage);
    seconds[static_cast<std::size_t>(span.stage)] += span.end - span.begin;
    bytes += span.bytes_received;
  }
  for (std::size_t stage = 0; stage < seconds.size(); ++stage)
    EXPECT_NEAR(seconds[stage], record.statistics.seconds[stage], rounding) << name_of(static_cast<Stage>(stage));
  const auto& received = record.statistics.bytes_received;
  const std::int64_t control = received[static_cast<std::size_t>(Traffic::control)];
  const std::int64_t all = std::accumulate(received.begin(), received.end(), std::int64_t{0});
  // The need matrix is the only control message that belongs to a stage.
  EXPECT_GE(bytes, all - control);
  EXPECT_LE(bytes, all);
  const auto waits = record.waits();
  double computing = std::accumulate(waits.begin(), waits.end(), 0.0);
  for (const StageSpan& span : record.spans)
    if (!moves_messages(span.stage)) computing += span.end - span.begin;
  EXPECT_LE(computing, record.seconds() + rounding);
}

void check_texts(const std::vector<StepRecord>& records) {
  const json list = json::parse(json_of(records));
  const json events = json::parse(chrome_trace_of(records))["traceEvents"];
  ASSERT_EQ(list.size(), records.size());
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    const StepRecord& record = records[rank];
    EXPECT_EQ(record.rank, static_cast<int>(rank));
    EXPECT_EQ(list[rank]["rank"], rank);
    EXPECT_EQ(list[rank]["rows"], record.rows);
    EXPECT_EQ(list[rank]["spans"].size(), record.spans.size());
    EXPECT_EQ(list[rank]["bytes_received"]["blocks"],
              record.statistics.bytes_received[static_cast<std::size_t>(Traffic::blocks)]);
    EXPECT_NEAR(list[rank]["stage_seconds"]["window"].get<double>(),
                record.statistics.seconds[static_cast<std::size_t>(Stage::window)], rounding);
    const auto of_rank = std::count_if(events.begin(), events.end(),
                                       [&](const json& event) { return event["ph"] == "X" && event["pid"] == rank; });
    EXPECT_EQ(static_cast<std::size_t>(of_rank), record.spans.size());
  }
}

TEST_P(StepRecords, SpansAreThoseOfTheStatistics) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 70, 200}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts()) {
    const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
    const LayerSetting setting{.dtype = dtype, .timing = true};
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Attention layer(problem.config, partition, own, communicator, options_of(setting));
      RankTensors tensors(problem, partition, communicator.rank(), setting, own);
      LayerMemory memory(layer, own);
      for (int step = 0; step < 2; ++step) {  // the second reuses the events of the first
        layer.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
        layer.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
      }
      const StepRecord record = layer.record();
      EXPECT_GT(record.spans.size(), 8u);
      EXPECT_EQ(record.rows, layer.rows());
      check_spans(record);
      const std::vector<StepRecord> all = gather_records(record, communicator);
      ASSERT_EQ(all.size(), static_cast<std::size_t>(ranks));
      EXPECT_EQ(pack_record(all[static_cast<std::size_t>(communicator.rank())]), pack_record(record));
      if (communicator.rank() == 0) check_texts(all);
    });
  }
}

TEST_P(StepRecords, HaveNoSpansWithoutTiming) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 100}, 1);
  if (!supported(problem.config, dtype)) return;
  const Partition partition = make_partition(PartitionKind::contiguous, problem, 1);
  const LayerSetting setting{.dtype = dtype};
  if (rank_counts().front() != 1) return;
  on_ranks(1, [&](Communicator& communicator, Device& own) {
    Attention layer(problem.config, partition, own, communicator, options_of(setting));
    const StepRecord record = layer.record();
    EXPECT_TRUE(record.spans.empty());
    EXPECT_EQ(record.seconds(), 0);
    EXPECT_EQ(record.statistics.workspace_bytes, layer.statistics().workspace_bytes);
  });
}

TEST(StepRecord, WaitsAreTheGapsOfTheCallersStream) {
  StepRecord record;
  record.spans = {{Stage::compress, 1, 2, 0},
                  {Stage::gather_summaries, 2, 5, 100},
                  {Stage::window, 2, 3, 0},
                  {Stage::compressed, 5, 6, 0},
                  {Stage::window_backward, 6, 8, 0}};
  const auto waits = record.waits();
  EXPECT_EQ(waits[static_cast<std::size_t>(Stage::compress)], 1);
  EXPECT_EQ(waits[static_cast<std::size_t>(Stage::window)], 0);
  EXPECT_EQ(waits[static_cast<std::size_t>(Stage::compressed)], 2);
  EXPECT_EQ(waits[static_cast<std::size_t>(Stage::gather_summaries)], 0);
  EXPECT_EQ(record.seconds(), 8);
}

TEST(StepRecord, OtherBytesAreRefused) {
  const std::string bytes = pack_record({2, 4, 1, 10, {}, {{Stage::window, 0, 1, 2}}});
  EXPECT_EQ(unpack_record(bytes).rank, 2);
  EXPECT_EQ(unpack_record(bytes).spans.at(0).bytes_received, 2);
  for (const std::string& wrong : {std::string(), bytes.substr(1), bytes + "x", bytes.substr(0, bytes.size() - 32)})
    EXPECT_THROW(unpack_record(wrong), ArgumentError) << wrong.size();
}

}  // namespace
}  // namespace cpnsa::test
