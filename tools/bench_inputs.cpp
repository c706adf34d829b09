#include "tools/bench_inputs.hpp"

#include <cmath>

#include "backends/backends.hpp"
#include "tools/npy.hpp"

namespace cpnsa::tool {
using backends::RandomRows;

namespace {

constexpr std::int64_t local_run = 64;  // consecutive queries that prefer the same blocks
constexpr float local_noise = 0.4f;     // noise per query: at 64K, 16 queries together select 40 to 60 blocks

}  // namespace

void BenchInputs::fill(Device& device, Stream stream, LayerMemory& memory, const std::vector<LayerTensor>& tensors,
                       const LayerTensor* dout, const Partition& partition, int rank, std::uint64_t set) const {
  std::uint64_t index = 0;
  const auto numbers = [&](const LayerTensor& tensor) {
    // The fan-in of a parameter is its second to last extent: [G, inputs, outputs].
    const auto fan_in = static_cast<float>(tensor.per_token ? 1 : tensor.shape[tensor.shape.size() - 2].size);
    RandomRows rows{RandomRows::mix(RandomRows::mix(seed_ + set * 1024) + index++), tensor.elements_per_row(),
                    1 / std::sqrt(fan_in)};
    if (selection_ == Selection::local && tensor.name == "q") rows.run = local_run, rows.own_share = local_noise;
    return rows;
  };
  for (const LayerTensor& tensor : tensors)
    fill(device, stream, memory.input(tensor.name), tensor, partition, rank, numbers(tensor));
  if (dout) fill(device, stream, memory.dout(), *dout, partition, rank, numbers(*dout));
  device.synchronize(stream);
}

void BenchInputs::fill(Device& device, Stream stream, DeviceTensor& destination, const LayerTensor& tensor,
                       const Partition& partition, int rank, const RandomRows& numbers) const {
  auto* to = static_cast<std::byte*>(destination.view().data);
  const auto rows = [&](std::int64_t first, std::int64_t count) {
    fill_rows(device, stream, to, numbers, first, count);
    to += static_cast<std::size_t>(count * numbers.width) * size_of(dtype_);
  };
  if (!tensor.per_token) return rows(0, tensor.shape[0].size);
  for (const TokenRange& range : partition.ranges(rank)) rows(range.begin, range.size());
}

void BenchInputs::fill_rows(Device& device, Stream stream, void* destination, const RandomRows& numbers,
                            std::int64_t first, std::int64_t count) const {
  if (device.host_accessible()) return write_rows(numbers, first, count, static_cast<std::byte*>(destination));
  backends::fill_random(destination, dtype_, numbers, first, count, stream);
}

void BenchInputs::write_rows(const RandomRows& numbers, std::int64_t first_row, std::int64_t rows,
                             std::byte* destination) const {
  std::vector<float> row(static_cast<std::size_t>(numbers.width));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::size_t column = 0; column < row.size(); ++column)
      row[column] = numbers.at(first_row + i, static_cast<std::int64_t>(column));
    narrow(row.data(), dtype_, destination, numbers.width);
    destination += row.size() * size_of(dtype_);
  }
}

}  // namespace cpnsa::tool
