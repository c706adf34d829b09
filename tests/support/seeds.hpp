#pragma once

#include <cstdint>
#include <vector>

namespace cpnsa::test {

/// The seeds of a randomised test: 1 to `count`, or those of the environment variable CPNSA_TEST_SEEDS, e.g. 17 or
/// 100-499. A failed check prints the seed with its problem.
std::vector<std::uint64_t> seeds(std::uint64_t count);

}  // namespace cpnsa::test
