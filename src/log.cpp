#include "cpnsa/log.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "cpnsa/error.hpp"

namespace cpnsa {
namespace {

constexpr LogLevel default_level = LogLevel::warning;
constexpr int no_level = -1;  // of a process that has not set one

std::atomic<int> set_level{no_level};

/// The hook, and the keys of warnings that were given. Never destroyed, because objects that end with the process log.
struct State {
  std::mutex mutex;
  std::shared_ptr<const LogHook> hook;
  std::set<std::string, std::less<>> warned;
};
State& state() {
  static State& state = *new State;
  return state;
}

LogLevel level_of_environment() {
  const char* text = std::getenv("CPNSA_LOG");
  if (!text || !*text) return default_level;
  if (const std::optional<LogLevel> level = value_named<LogLevel>(text)) return *level;
  throw ArgumentError(
      fmt::format("CPNSA_LOG: found {}, expected one of {}", text, fmt::join(enum_names<LogLevel>, ", ")));
}

// A message must not be lost because of a variable that the constructor of Attention reports.
LogLevel level_or_default() {
  try {
    return log_level();
  } catch (const ArgumentError&) {
    return default_level;
  }
}

void write_to_standard_error(LogLevel level, std::string_view message) {
  const std::string line = fmt::format("cpnsa: {}: {}\n", name_of(level), message);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace

void set_log_hook(LogHook hook) {
  std::shared_ptr<const LogHook> next = hook ? std::make_shared<const LogHook>(std::move(hook)) : nullptr;
  const std::lock_guard lock(state().mutex);
  state().hook.swap(next);
}

void set_log_level(LogLevel level) {
  set_level = static_cast<int>(level);
}

LogLevel log_level() {
  const int level = set_level;
  return level == no_level ? level_of_environment() : static_cast<LogLevel>(level);
}

void log(LogLevel level, std::string_view message) noexcept {
  try {
    if (level >= LogLevel::off || level < level_or_default()) return;
    std::shared_ptr<const LogHook> hook;
    {
      const std::lock_guard lock(state().mutex);
      hook = state().hook;
    }
    if (hook)
      (*hook)(level, message);
    else
      write_to_standard_error(level, message);
  } catch (...) {  // a message is never worth a failed step
  }
}

void warn_once(std::string_view key, std::string_view message) noexcept {
  try {
    const std::lock_guard lock(state().mutex);
    if (state().warned.contains(key)) return;
    state().warned.emplace(key);
  } catch (...) {
    return;
  }
  log(LogLevel::warning, message);
}

}  // namespace cpnsa
