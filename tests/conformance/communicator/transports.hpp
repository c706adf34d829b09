#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace cpnsa::test {

using Bytes = std::vector<std::byte>;

/// A suite that runs on each transport that the executable was linked with, at each number of ranks.
class TransportTest : public ::testing::TestWithParam<TransportBackend> {
 protected:
  using Body = std::function<void(Communicator&, Device&)>;

  /// Runs the body on every rank, with a device of the rank's own: on each device that the executable was linked with,
  /// for each number of ranks from `least` on.
  static void run(const Body& body, int least = 1);
};

/// The name that GoogleTest shows.
std::string name_of(const ::testing::TestParamInfo<TransportBackend>& info);

/// Bytes that depend on every argument.
Bytes message(std::uint64_t seed, int from, int to, std::size_t size);

/// What an exchange of messages of these sizes brings to a rank; sizes[from][to], 0 for no message.
using Sizes = std::vector<std::vector<std::size_t>>;

/// The same sizes on every rank: about half of the pairs have a message, some of many thousand bytes.
Sizes random_sizes(std::uint64_t seed, int ranks);

/// One exchange of messages, checked byte by byte; what lies around them must stay as it was.
void check_exchange(Communicator& communicator, Device& device, const Sizes& sizes, std::uint64_t seed);

/// What the callable threw; "" if it threw nothing. `Thrown` is the type expected.
template <class Thrown>
std::string text_thrown(const std::function<void()>& callable) {
  try {
    callable();
  } catch (const Thrown& error) {
    return error.what();
  }
  return {};
}

}  // namespace cpnsa::test
