#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/partition.hpp"
#include "tools/layer_memory.hpp"
#include "tools/layer_tensors.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// Random normal inputs that depend on the seed, the set and the token alone: the same at every rank count. A row is
/// put together of pieces of one table of normal numbers, taken from hashed places: fast enough for millions of tokens.
class BenchInputs {
 public:
  BenchInputs(DType dtype, Selection selection, std::uint64_t seed);

  /// Fills the rank's rows of every tensor with input set `set`. Parameters are scaled by 1/sqrt(inputs of a neuron).
  void fill(LayerMemory& memory, const std::vector<LayerTensor>& tensors, const LayerTensor* dout,
            const Partition& partition, int rank, std::uint64_t set, Staging& staging) const;

 private:
  struct Stream;  // one tensor's numbers

  void fill(DeviceTensor& destination, const LayerTensor& tensor, const Partition& partition, int rank,
            const Stream& numbers, Staging& staging) const;
  void write_row(const Stream& numbers, std::int64_t row, std::int64_t width, std::byte* destination) const;
  const float* piece(const Stream& numbers, std::uint64_t row, std::uint64_t index) const;

  DType dtype_;
  Selection selection_;
  std::uint64_t seed_;
  std::vector<float> table_;
  std::vector<std::byte> narrowed_;  ///< the table in the layer's type
};

}  // namespace cpnsa::tool
