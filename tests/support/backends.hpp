#pragma once

// The registries of devices and transports that a test executable was linked with. A suite runs on all of them; a new
// backend adds one source file that registers itself.

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
  std::vector<DType> dtypes;       ///< in descending order of precision
  std::int64_t dim_step = 1;       ///< supported head dimensions and hidden widths are multiples of it
  bool has_long_tiles = false;     ///< only documents of over 2048 tokens fill several tiles of its kernels
  bool zero_masked = false;        ///< its kernels multiply masked values by 0, so a NaN among them reaches the result
  bool selects_in_chunks = false;  ///< has_long_tiles for the kernel that selects blocks alone
  bool pads_heads = false;         ///< its tiles have padding that depends on the number of heads per KV head
  bool is_slow = false;            ///< takes seconds for a problem of a few hundred tokens
};

struct TransportBackend {
  std::string name;
  /// The numbers of ranks that can run here; only one if each rank is a process.
  std::function<std::vector<int>()> rank_counts;
  /// Runs the body on each of `ranks` ranks, with a communicator on which nothing has failed.
  std::function<void(int ranks, const std::function<void(Communicator&)>& body)> run;
  /// Whether the ranks' calls are compared, and a failure of one rank is reported on every rank.
  bool tells_other_ranks = true;
  bool one_sided = false;  ///< whether its communicators have Communicator::one_sided()
};

/// For GoogleTest, which would otherwise print the bytes of a parameter.
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
