#pragma once

#include <array>
#include <functional>
#include <string_view>

#include "cpnsa/names.hpp"

namespace cpnsa {

enum class LogLevel { debug, info, warning, error, off };
constexpr auto names_of(LogLevel) {
  return std::to_array<std::string_view>({"debug", "info", "warning", "error", "off"});
}

/// Receives the library's messages, one line each, without a newline. It may be called by several threads at once, and
/// in the middle of a collective call: it must not call the library, and must not throw (what it throws is dropped).
using LogHook = std::function<void(LogLevel level, std::string_view message)>;

/// Replaces the receiver of messages. The first receiver, and that of an empty hook, writes "cpnsa: warning: ..." to
/// standard error.
void set_log_hook(LogHook hook);

/// Messages below `level` are dropped before they reach the hook. Unless set: the environment variable CPNSA_LOG, one
/// of debug, info, warning, error and off; otherwise warning. log_level() and the constructor of Attention throw
/// ArgumentError if the variable holds anything else.
void set_log_level(LogLevel level);
LogLevel log_level();

/// Hands a message to the hook if its level allows it; debug to error. Throws nothing.
void log(LogLevel level, std::string_view message) noexcept;

/// The same for a warning that a process gives once: later warnings of an equal `key` are dropped.
void warn_once(std::string_view key, std::string_view message) noexcept;

}  // namespace cpnsa
