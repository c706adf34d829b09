#include "cpnsa/flight_recorder.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>

#include "comm/interrupts.hpp"

namespace cpnsa {
namespace {

std::uint64_t draw_group() {
  std::random_device device;
  const std::uint64_t high = device(), low = device();
  return (high << 32 | low) | 1;  // never 0, which stands for none
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (byte < ' ' || byte == 0x7f)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += c;
  }
  return out + '"';
}

std::string host_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

}  // namespace

FlightRecorder::FlightRecorder() : own_group_(draw_group()), traces_written_(comm::traces_requested()) {}

void FlightRecorder::set_owner(std::string_view transport, int rank, int ranks) {
  const std::lock_guard lock(mutex_);
  transport_ = transport, rank_ = rank, ranks_ = ranks;
}

FlightRecorder::Call::Call(FlightRecorder& recorder, std::string_view name, std::int64_t layer, std::int64_t number)
    : recorder_(recorder) {
  const std::lock_guard lock(recorder_.mutex_);
  outermost_ = !recorder_.in_call_;
  if (!outermost_) return;
  recorder_.in_call_ = true;
  recorder_.call_ = {name, layer, number, 0};
  recorder_.purpose_ = {};
}

FlightRecorder::Call::~Call() {
  if (!outermost_) return;
  const std::lock_guard lock(recorder_.mutex_);
  recorder_.in_call_ = false;
  recorder_.purpose_ = {};
}

FlightRecorder::Operation::Operation(FlightRecorder& recorder, std::string_view name, std::size_t bytes_sent,
                                     std::size_t bytes_received)
    : recorder_(recorder) {
  recorder_.write_if_requested();
  const std::lock_guard lock(recorder_.mutex_);
  outermost_ = recorder_.depth_++ == 0;
  if (!outermost_) return;
  Entry entry;
  entry.sequence = ++recorder_.operations_;
  if (recorder_.in_call_) {
    ++recorder_.call_.operations;
    entry.call = recorder_.call_;
  }
  entry.name = name, entry.purpose = recorder_.purpose_;
  entry.bytes_sent = bytes_sent, entry.bytes_received = bytes_received;
  entry.begin = entry.end = Clock::now();
  recorder_.entries_[static_cast<std::size_t>(entry.sequence) % capacity] = entry;
}

FlightRecorder::Operation::~Operation() {
  const std::lock_guard lock(recorder_.mutex_);
  if (--recorder_.depth_ > 0 || !outermost_) return;
  Entry& entry = recorder_.entries_[static_cast<std::size_t>(recorder_.operations_) % capacity];
  entry.end = Clock::now(), entry.ended = std::uncaught_exceptions() == 0;  // one that throws stays unfinished
}

void FlightRecorder::set_purpose(std::string_view purpose) {
  const std::lock_guard lock(mutex_);
  purpose_ = purpose;
}

std::string FlightRecorder::text_of(const CallName& call) {
  return fmt::format("{}{}{}", call.name, call.layer > 0 ? fmt::format(" of layer {}", call.layer) : "",
                     call.number > 0 ? fmt::format(", call {}", call.number) : "");
}

std::string FlightRecorder::text_of(const Entry& entry) {
  const std::string operation = fmt::format("{}{}{}", entry.name, entry.purpose.empty() ? "" : " of ", entry.purpose);
  if (entry.call.name.empty()) return fmt::format("operation {}: {}", entry.sequence, operation);
  return fmt::format("{}, operation {}: {}", text_of(entry.call), entry.call.operations, operation);
}

std::string FlightRecorder::describe() const {
  const std::lock_guard lock(mutex_);
  if (operations_ == 0) return {};
  const Entry& last = entries_[static_cast<std::size_t>(operations_) % capacity];
  return (last.ended ? "after " : "") + text_of(last);
}

std::string FlightRecorder::describe_call() const {
  const std::lock_guard lock(mutex_);
  return in_call_ ? text_of(call_) : std::string();
}

void FlightRecorder::set_group(std::uint64_t group) {
  const std::lock_guard lock(mutex_);
  if (group_ == 0) group_ = group;
}

std::string FlightRecorder::file_text(std::string_view reason) const {
  using std::chrono::duration;
  const Clock::time_point now = Clock::now();
  const double wall = duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto seconds = [&](Clock::time_point time) { return wall - duration<double>(now - time).count(); };
  std::string text = fmt::format(
      "{{\"rank\": {}, \"ranks\": {}, \"transport\": {}, \"group\": \"{:016x}\", \"host\": {}, \"process\": {}, "
      "\"time\": {:.6f}, \"reason\": {},\n \"operations\": [",
      rank_, ranks_, json_string(transport_), group_, json_string(host_name()), static_cast<long>(::getpid()), wall,
      json_string(reason));
  const std::int64_t first = std::max<std::int64_t>(1, operations_ - static_cast<std::int64_t>(capacity) + 1);
  for (std::int64_t sequence = first; sequence <= operations_; ++sequence) {
    const Entry& entry = entries_[static_cast<std::size_t>(sequence) % capacity];
    text += fmt::format(
        "{}\n  {{\"sequence\": {}, \"call\": {}, \"layer\": {}, \"number\": {}, \"operation\": {}, \"name\": {}, "
        "\"purpose\": {}, \"sent\": {}, \"received\": {}, \"begin\": {:.6f}, \"end\": {}}}",
        sequence == first ? "" : ",", entry.sequence, json_string(entry.call.name), entry.call.layer, entry.call.number,
        entry.call.operations, json_string(entry.name), json_string(entry.purpose), entry.bytes_sent,
        entry.bytes_received, seconds(entry.begin), entry.ended ? fmt::format("{:.6f}", seconds(entry.end)) : "null");
  }
  return text + "\n ]}\n";
}

void FlightRecorder::write(std::string_view reason) const noexcept {
  try {
    const char* const folder = std::getenv("CPNSA_TRACE");
    if (!folder || !*folder) return;
    const std::lock_guard lock(mutex_);
    // Ranks that have agreed on nothing yet have no common number; theirs are told apart by host and process.
    const std::string path = fmt::format(
        "{}/cpnsa-{}-rank{}.json", folder,
        group_ != 0 ? fmt::format("{:016x}", group_) : fmt::format("{}-{}", host_name(), static_cast<long>(::getpid())),
        rank_);
    std::FILE* const file = std::fopen(path.c_str(), "w");
    if (!file) return;
    const std::string text = file_text(reason);
    std::fwrite(text.data(), 1, text.size(), file);
    std::fclose(file);
  } catch (const std::exception&) {  // a record that cannot be written must not hide the failure
  }
}

void FlightRecorder::write_if_requested() noexcept {
  const int requested = comm::traces_requested();
  {
    const std::lock_guard lock(mutex_);
    if (requested == traces_written_) return;
    traces_written_ = requested;
  }
  write("requested");
}

}  // namespace cpnsa
