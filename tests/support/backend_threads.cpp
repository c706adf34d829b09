#include "cpnsa/threads/communicator.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

const bool registered = add(transports(), TransportBackend{"threads",
                                                           [] {
                                                             return std::vector<int>{1, 2, 3, 4, 8};
                                                           },
                                                           threads::run_ranks});

}  // namespace
}  // namespace cpnsa::test
