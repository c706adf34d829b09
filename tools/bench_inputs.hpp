#pragma once

#include <cstdint>
#include <vector>

#include "backends/random_rows.hpp"
#include "cpnsa/partition.hpp"
#include "tools/layer_memory.hpp"
#include "tools/layer_tensors.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// Random inputs that depend only on the seed, the set and the token, so that they are equal for every number of ranks.
/// A GPU generates its inputs itself, because they can have tens of gigabytes; the host generates those of the CPU
/// device.
class BenchInputs {
 public:
  BenchInputs(DType dtype, Selection selection, std::uint64_t seed)
      : dtype_(dtype), selection_(selection), seed_(seed) {}

  /// Fills the rank's rows of every tensor with input set `set`, and returns when they are complete. Parameters are
  /// scaled by 1/sqrt(inputs of a neuron).
  void fill(Device& device, Stream stream, LayerMemory& memory, const std::vector<LayerTensor>& tensors,
            const LayerTensor* dout, const Partition& partition, int rank, std::uint64_t set) const;

  /// Enqueues: rows [first, first + count) of `numbers`, written to `destination` one after another.
  void fill_rows(Device& device, Stream stream, void* destination, const backends::RandomRows& numbers,
                 std::int64_t first, std::int64_t count) const;

 private:
  void fill(Device& device, Stream stream, DeviceTensor& destination, const LayerTensor& tensor,
            const Partition& partition, int rank, const backends::RandomRows& numbers) const;
  void write_rows(const backends::RandomRows& numbers, std::int64_t first_row, std::int64_t rows,
                  std::byte* destination) const;

  DType dtype_;
  Selection selection_;
  std::uint64_t seed_;
};

}  // namespace cpnsa::tool
