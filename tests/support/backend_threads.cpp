#include "cpnsa/threads/communicator.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

const bool registered = add(transports(), TransportBackend{.name = "threads",
                                                           .rank_counts =
                                                               [] {
                                                                 return std::vector<int>{1, 2, 3, 4, 8};
                                                               },
                                                           .run = threads::run_ranks,
                                                           .one_sided = true});

}  // namespace
}  // namespace cpnsa::test
