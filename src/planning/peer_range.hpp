#pragma once

#include <cstdint>

namespace cpnsa::planning {

/// Items [first, first + count) of a send or receive buffer, that one peer gets or fills.
struct PeerRange {
  int peer;
  std::int64_t first;
  std::int64_t count;
  bool operator==(const PeerRange&) const = default;
};

}  // namespace cpnsa::planning
