#include "cpnsa/log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "cpnsa/error.hpp"

namespace cpnsa::test {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

/// Collects messages as long as it lives.
class Collected {
 public:
  explicit Collected(LogLevel level) {
    set_log_hook([this](LogLevel of, std::string_view message) { messages.emplace_back(of, message); });
    set_log_level(level);
  }
  ~Collected() {
    set_log_hook({});
    set_log_level(LogLevel::warning);
  }
  std::vector<std::pair<LogLevel, std::string>> messages;
};

// First in this file: later tests set a level, which outranks the variable.
TEST(Log, TheEnvironmentDecidesUntilALevelIsSet) {
  ASSERT_EQ(::unsetenv("CPNSA_LOG"), 0);
  EXPECT_EQ(log_level(), LogLevel::warning);
  for (const LogLevel level : enum_values<LogLevel>) {
    ASSERT_EQ(::setenv("CPNSA_LOG", std::string(name_of(level)).c_str(), 1), 0);
    EXPECT_EQ(log_level(), level);
  }
  ASSERT_EQ(::setenv("CPNSA_LOG", "loud", 1), 0);
  try {
    log_level();
    ADD_FAILURE() << "expected an ArgumentError";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "CPNSA_LOG: found loud, expected one of debug, info, warning, error, off");
  }
  set_log_level(LogLevel::error);
  EXPECT_EQ(log_level(), LogLevel::error);
  ASSERT_EQ(::unsetenv("CPNSA_LOG"), 0);
}

TEST(Log, AHookGetsWhatTheLevelLetsThrough) {
  Collected collected(LogLevel::info);
  log(LogLevel::debug, "a");
  log(LogLevel::info, "b");
  log(LogLevel::error, "c");
  set_log_level(LogLevel::off);
  log(LogLevel::error, "d");
  EXPECT_THAT(collected.messages, ElementsAre(Pair(LogLevel::info, "b"), Pair(LogLevel::error, "c")));
}

TEST(Log, AWarningOfOneKeyIsGivenOnce) {
  Collected collected(LogLevel::warning);
  for (int repeat = 0; repeat < 3; ++repeat) {
    warn_once("log_test 1", "first");
    warn_once("log_test 2", "second");
  }
  EXPECT_THAT(collected.messages, ElementsAre(Pair(LogLevel::warning, "first"), Pair(LogLevel::warning, "second")));
}

TEST(Log, AnEmptyHookWritesToStandardError) {
  set_log_level(LogLevel::warning);
  set_log_hook({});
  ::testing::internal::CaptureStderr();
  log(LogLevel::warning, "a message");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "cpnsa: warning: a message\n");
}

TEST(Log, WhatAHookThrowsIsDropped) {
  set_log_hook([](LogLevel, std::string_view) { throw Error("of the hook"); });
  set_log_level(LogLevel::warning);
  EXPECT_NO_THROW(log(LogLevel::error, "a message"));
  set_log_hook({});
}

}  // namespace
}  // namespace cpnsa::test
