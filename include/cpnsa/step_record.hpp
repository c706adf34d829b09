#pragma once

// Records of a step: the stages of each rank with their times, waits and bytes, as JSON or as a trace for Perfetto.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"

namespace cpnsa {

/// One stretch of a stage, e.g. of one round of blocks.
struct StageSpan {
  Stage stage{};
  double begin = 0;  ///< seconds after the forward began on the caller's stream
  double end = 0;
  std::int64_t bytes_received = 0;
};

/// One rank's part of a step: of the last forward() and the backward() after it. See Attention::record().
struct StepRecord {
  int rank = 0;
  int ranks = 1;
  std::int64_t layer = 0;  ///< number of the layer on its communicator
  std::int64_t rows = 0;
  Statistics statistics;
  std::vector<StageSpan> spans;  ///< in the order in which they were enqueued

  double seconds() const;  ///< from the beginning of the forward to the end of the last span
  /// By Stage: the time that the caller's stream did no timed work before the stage's spans, because it waited for
  /// messages, for the host or for other ranks, or packed messages.
  std::array<double, stage_count> waits() const;
};

/// True for a stage that runs on the layer's own stream for messages, not on the caller's.
constexpr bool moves_messages(Stage stage) {
  switch (stage) {
    case Stage::exchange_halo:
    case Stage::gather_summaries:
    case Stage::fetch_blocks:
    case Stage::refetch_blocks:
    case Stage::return_block_gradients:
    case Stage::reduce_summary_gradients:
    case Stage::return_halo_gradients: return true;
    default: return false;
  }
}
constexpr bool is_backward(Stage stage) {
  return stage > Stage::combine;  // the last one of a forward
}

/// The record as bytes for another process of the same build, and back. unpack_record() throws ArgumentError for bytes
/// that pack_record() did not write.
std::string pack_record(const StepRecord& record);
StepRecord unpack_record(std::string_view bytes);

/// All ranks' records, in rank order, on every rank. Collective.
std::vector<StepRecord> gather_records(const StepRecord& own, Communicator& communicator);

/// A JSON array with an object per record: its numbers, stages with seconds and waits, bytes by traffic, spans.
std::string json_of(std::span<const StepRecord> records);

/// The records in the format of chrome://tracing: a process per rank, with a thread for the caller's stream and one for
/// messages. Each rank's time begins with its own forward.
std::string chrome_trace_of(std::span<const StepRecord> records);

}  // namespace cpnsa
