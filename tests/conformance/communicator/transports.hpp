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

/// A suite that runs on each transport that the executable was linked with, for each number of ranks.
class TransportTest : public ::testing::TestWithParam<TransportBackend> {
 protected:
  using Body = std::function<void(Communicator&, Device&)>;

  /// Runs the body on every rank with a device per rank, on each device that the executable was linked with, for each
  /// number of ranks from `min_ranks` on.
  static void run(const Body& body, int min_ranks = 1);
};

/// The name of a parameter in GoogleTest's output.
std::string name_of(const ::testing::TestParamInfo<TransportBackend>& info);

/// A message whose bytes depend on every argument.
Bytes message(std::uint64_t seed, int from, int to, std::size_t size);

/// The sizes of the messages of an exchange: sizes[from][to], 0 for no message.
using Sizes = std::vector<std::vector<std::size_t>>;

/// Random sizes, the same on every rank: about half of the pairs have a message; some have many thousand bytes.
Sizes random_sizes(std::uint64_t seed, int ranks);

/// Makes one exchange and checks every byte; bytes around the messages must not change.
void check_exchange(Communicator& communicator, Device& device, const Sizes& sizes, std::uint64_t seed);

/// The text of the exception of type `Thrown` that the callable throws; "" if it throws none.
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
