#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpnsa/cpnsa.h"
#include "tests/support/backends.hpp"

namespace cpnsa::test {

/// Ranks that have a communicator of the C interface, and one of the C++ library's for what a test itself moves.
struct CTransport {
  using Body = std::function<void(Communicator&, cpnsa_communicator)>;

  std::string name;
  std::vector<int> (*rank_counts)();
  void (*run)(int ranks, const Body& body);
};

/// Those that the executable was linked with.
std::vector<CTransport>& c_transports();

}  // namespace cpnsa::test
