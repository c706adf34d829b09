#include "tests/support/seeds.hpp"

#include <cstdlib>
#include <string>

namespace cpnsa::test {

std::vector<std::uint64_t> seeds(std::uint64_t count) {
  std::uint64_t first = 1, last = count;
  if (const char* asked = std::getenv("CPNSA_TEST_SEEDS")) {
    const std::string text = asked;
    const std::size_t dash = text.find('-');
    first = std::stoull(text);
    last = dash == std::string::npos ? first : std::stoull(text.substr(dash + 1));
  }
  std::vector<std::uint64_t> result;
  for (std::uint64_t seed = first; seed <= last; ++seed) result.push_back(seed);
  return result;
}

}  // namespace cpnsa::test
