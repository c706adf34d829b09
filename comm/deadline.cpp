#include "comm/deadline.hpp"

#include <fmt/format.h>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "cpnsa/communicator.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa {
namespace {

std::atomic<std::int64_t> default_milliseconds{0};  // 0 until set_default_deadline()

}  // namespace

std::chrono::milliseconds initial_deadline() {
  if (const std::int64_t set = default_milliseconds; set > 0) return std::chrono::milliseconds(set);
  const char* const variable = std::getenv("CPNSA_DEADLINE");
  if (!variable) return Communicator::default_deadline;
  const std::string_view text(variable);
  constexpr std::int64_t max_seconds = 1'000'000;
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds < 1 || seconds > max_seconds)
    throw ArgumentError(
        fmt::format("CPNSA_DEADLINE: found \"{}\", expected whole seconds from 1 to {}", text, max_seconds));
  return std::chrono::seconds(seconds);
}

void set_default_deadline(std::chrono::milliseconds deadline) {
  comm::check_deadline(deadline);
  default_milliseconds = deadline.count();
}

namespace comm {

void check_deadline(std::chrono::milliseconds limit) {
  if (limit.count() < 1) throw ArgumentError(fmt::format("deadline: found {}, expected 1 ms at least", text_of(limit)));
}

std::string text_of(std::chrono::milliseconds time) {
  return fmt::format("{} ms", time.count());
}

}  // namespace comm
}  // namespace cpnsa
