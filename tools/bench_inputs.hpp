#pragma once

#include <cstdint>
#include <vector>

#include "backends/random_rows.hpp"
#include "cpnsa/partition.hpp"
#include "tools/layer_memory.hpp"
#include "tools/layer_tensors.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// Random inputs that depend on the seed, the set and the token alone: the same at every rank count. A GPU makes its
/// own, tens of gigabytes in the blink of an eye; for the CPU the host makes them.
class BenchInputs {
 public:
  BenchInputs(DType dtype, Selection selection, std::uint64_t seed)
      : dtype_(dtype), selection_(selection), seed_(seed) {}

  /// Fills the rank's rows of every tensor with input set `set`, and returns when they are there. Parameters are scaled
  /// by 1/sqrt(inputs of a neuron).
  void fill(Device& device, Stream stream, LayerMemory& memory, const std::vector<LayerTensor>& tensors,
            const LayerTensor* dout, const Partition& partition, int rank, std::uint64_t set) const;

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
