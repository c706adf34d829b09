#include "cpnsa/step_record.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpnsa/error.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

/// The part of a packed record that has a fixed size; its spans follow.
struct Head {
  std::int64_t version;
  std::int64_t span_count;
  std::int64_t layer;
  std::int64_t rows;
  int rank;
  int ranks;
  Statistics statistics;
};
static_assert(std::is_trivially_copyable_v<Head> && std::is_trivially_copyable_v<StageSpan>);

constexpr std::int64_t head_version = 1;

// Microseconds, the unit of the trace format.
double micros(double seconds) {
  return 1e6 * seconds;
}

template <class Enum, class Values>
std::string object_of(const Values& values) {
  std::string text;
  for (const Enum key : enum_values<Enum>)
    text += fmt::format("{}\"{}\": {}", text.empty() ? "" : ", ", name_of(key), at(values, key));
  return "{" + text + "}";
}

std::string json_of_one(const StepRecord& record) {
  const Statistics& statistics = record.statistics;
  std::string text = fmt::format(
      "{{\"rank\": {}, \"ranks\": {}, \"layer\": {}, \"rows\": {}, \"exchange\": \"{}\", \"seconds\": {}, "
      "\"workspace_bytes\": {}, \"blocks_needed\": {}, \"blocks_fetched\": {},\n  \"bytes_received\": {},\n"
      "  \"stage_seconds\": {},\n  \"wait_seconds\": {},\n  \"spans\": [",
      record.rank, record.ranks, record.layer, record.rows, name_of(statistics.exchange), record.seconds(),
      statistics.workspace_bytes, statistics.blocks_needed, statistics.blocks_fetched,
      object_of<Traffic>(statistics.bytes_received), object_of<Stage>(statistics.seconds),
      object_of<Stage>(record.waits()));
  const char* separator = "";
  for (const StageSpan& span : record.spans) {
    text += fmt::format(
        "{}\n   {{\"stage\": \"{}\", \"stream\": \"{}\", \"begin\": {}, \"end\": {}, \"bytes_received\": {}}}",
        separator, name_of(span.stage), moves_messages(span.stage) ? "messages" : "compute", span.begin, span.end,
        span.bytes_received);
    separator = ",";
  }
  return text + "]}";
}

}  // namespace

double StepRecord::seconds() const {
  double last = 0;
  for (const StageSpan& span : spans) last = std::max(last, span.end);
  return last;
}

std::array<double, stage_count> StepRecord::waits() const {
  std::array<double, stage_count> waits{};
  double done = 0;
  for (const StageSpan& span : spans) {
    if (moves_messages(span.stage)) continue;
    at(waits, span.stage) += std::max(0.0, span.begin - done);
    done = std::max(done, span.end);
  }
  return waits;
}

std::string pack_record(const StepRecord& record) {
  const Head head{head_version,     static_cast<std::int64_t>(record.spans.size()),
                  record.layer,     record.rows,
                  record.rank,      record.ranks,
                  record.statistics};
  const std::size_t span_bytes = record.spans.size() * sizeof(StageSpan);
  std::string bytes(sizeof head + span_bytes, '\0');
  std::memcpy(bytes.data(), &head, sizeof head);
  if (span_bytes > 0) std::memcpy(bytes.data() + sizeof head, record.spans.data(), span_bytes);
  return bytes;
}

StepRecord unpack_record(std::string_view bytes) {
  Head head;
  const std::size_t rest = bytes.size() < sizeof head ? 0 : bytes.size() - sizeof head;
  if (bytes.size() >= sizeof head) std::memcpy(&head, bytes.data(), sizeof head);
  if (bytes.size() < sizeof head || head.version != head_version || rest % sizeof(StageSpan) != 0 ||
      static_cast<std::size_t>(head.span_count) != rest / sizeof(StageSpan))
    throw ArgumentError(
        fmt::format("step record: found {} bytes that are none, expected those of pack_record()", bytes.size()));
  StepRecord record{head.rank, head.ranks, head.layer, head.rows, head.statistics, {}};
  record.spans.resize(rest / sizeof(StageSpan));
  if (rest > 0) std::memcpy(record.spans.data(), bytes.data() + sizeof head, rest);
  return record;
}

std::vector<StepRecord> gather_records(const StepRecord& own, Communicator& communicator) {
  const auto ranks = to_size(communicator.size());
  const std::string bytes = pack_record(own);
  const auto own_size = static_cast<std::int64_t>(bytes.size());
  std::vector<std::int64_t> sizes(ranks);
  communicator.all_gather_host(&own_size, sizes.data(), sizeof own_size);
  const std::size_t widest = to_size(*std::max_element(sizes.begin(), sizes.end()));
  std::string padded = bytes, all(widest * ranks, '\0');
  padded.resize(widest);
  communicator.all_gather_host(padded.data(), all.data(), widest);
  std::vector<StepRecord> records;
  for (std::size_t rank = 0; rank < ranks; ++rank)
    records.push_back(unpack_record(std::string_view(all).substr(rank * widest, to_size(sizes[rank]))));
  return records;
}

std::string json_of(std::span<const StepRecord> records) {
  std::string text;
  for (const StepRecord& record : records) text += (text.empty() ? "" : ",\n ") + json_of_one(record);
  return "[" + text + "]\n";
}

std::string chrome_trace_of(std::span<const StepRecord> records) {
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [";
  const char* separator = "";
  const auto add = [&](const std::string& event) {
    text += fmt::format("{}\n {{{}}}", separator, event);
    separator = ",";
  };
  for (const StepRecord& record : records) {
    const auto name = [&](const char* kind, int thread, std::string_view value) {
      add(fmt::format(R"("ph": "M", "name": "{}", "pid": {}, "tid": {}, "args": {{"name": "{}"}})", kind, record.rank,
                      thread, value));
    };
    name("process_name", 0, fmt::format("rank {}", record.rank));
    name("thread_name", 0, "compute");
    name("thread_name", 1, "messages");
    for (const StageSpan& span : record.spans)
      add(fmt::format(R"("ph": "X", "name": "{}", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, )"
                      R"("args": {{"bytes_received": {}}})",
                      name_of(span.stage), is_backward(span.stage) ? "backward" : "forward", record.rank,
                      moves_messages(span.stage) ? 1 : 0, micros(span.begin), micros(span.end - span.begin),
                      span.bytes_received));
  }
  return text + "\n]}\n";
}

}  // namespace cpnsa
