#pragma once

#include <cstddef>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/device_memory.hpp"

namespace cpnsa::tool {

double median(std::vector<double> values);

/// Samples of every iteration, `width` of them in each.
struct Samples {
  std::size_t width;
  std::vector<double> seconds;  ///< [iterations, width]

  /// By column: the median over iterations of the slowest rank. Collective.
  std::vector<double> slowest_medians(Communicator& control) const;
};

/// Takes the place of everything in a GPU's cache before a step, and keeps the GPU busy until the host is ahead of it,
/// as in training: what follows is measured without its launches. Nothing for a CPU, whose input sets take turns.
class CacheFlush {
 public:
  CacheFlush(Device& device, Stream stream)
      : device_(device), stream_(stream), memory_(device, device.host_accessible() ? 0 : bytes) {}
  void enqueue() const {
    for (int pass = 0; memory_.data() && pass < passes; ++pass) device_.fill_zero(memory_.data(), bytes, stream_);
  }

 private:
  static constexpr std::size_t bytes = std::size_t{512} << 20;
  static constexpr int passes = 4;  // of 0.1 to 0.2 ms each; a forward is enqueued in 0.3
  Device& device_;
  Stream stream_;
  DeviceBuffer memory_;
};

}  // namespace cpnsa::tool
