#pragma once

#include <cstdint>
#include <vector>

namespace cpnsa::test {

/// Seeds of a randomised test: 1 to `count`, or what the environment asks for: CPNSA_TEST_SEEDS=17 or 100-499. A failed
/// check prints the seed with its problem.
std::vector<std::uint64_t> seeds(std::uint64_t count);

}  // namespace cpnsa::test
