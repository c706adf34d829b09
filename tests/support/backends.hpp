#pragma once

// The devices and transports that a test executable was linked with. A suite asks for all of them; a new backend adds
// one source file that registers itself.

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"

namespace cpnsa::test {

struct DeviceBackend {
  std::string name;
  std::function<std::unique_ptr<Device>()> make;
  std::vector<DType> dtypes;      ///< the most precise first
  std::int64_t dim_step = 1;      ///< widths of heads and hidden layers that it runs are multiples of
  bool walks_long_tiles = false;  ///< its kernels take so many keys at once that only long documents need several turns
  bool masks_by_zeros = false;    ///< its kernels multiply masked values by 0, which a NaN among them survives
  bool selects_in_turns = false;  ///< like walks_long_tiles, of the one kernel that selects blocks
  bool is_slow = false;           ///< takes seconds for a problem of some hundred tokens
};

struct TransportBackend {
  std::string name;
  /// Rank counts it can run here; one, if each rank is a process.
  std::function<std::vector<int>()> rank_counts;
  /// Runs the body on each of so many ranks, with a communicator on which nothing has failed.
  std::function<void(int ranks, const std::function<void(Communicator&)>& body)> run;
  /// Whether the ranks' calls are compared, and every rank learns of what ends one of them.
  bool tells_other_ranks = true;
};

/// For GoogleTest, which shows a parameter's bytes otherwise.
inline void PrintTo(const DeviceBackend& backend, std::ostream* stream) {
  *stream << backend.name;
}
inline void PrintTo(const TransportBackend& backend, std::ostream* stream) {
  *stream << backend.name;
}

std::vector<DeviceBackend>& devices();
std::vector<TransportBackend>& transports();

/// For static initialisation: `const bool registered = add(devices(), {...});`
template <class Backend>
bool add(std::vector<Backend>& registry, Backend backend) {
  registry.push_back(std::move(backend));
  return true;
}

}  // namespace cpnsa::test
