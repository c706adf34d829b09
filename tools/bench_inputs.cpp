#include "tools/bench_inputs.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "tools/npy.hpp"

namespace cpnsa::tool {
namespace {

constexpr std::size_t table_size = std::size_t{1} << 22;
constexpr std::int64_t piece_size = 4096;
constexpr std::int64_t local_run = 64;           // neighbouring queries that look for the same blocks
constexpr float local_noise = 0.4f;              // what each of them adds of its own: 16 share 40 to 60 blocks at 64K
constexpr std::uint64_t base_rows = 1ull << 48;  // rows of the shared directions, beyond any token

// splitmix64: neighbouring numbers in, unrelated numbers out.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

struct BenchInputs::Stream {
  std::uint64_t key;
  float scale;
  bool in_runs;  // rows of a run share their direction
};

BenchInputs::BenchInputs(DType dtype, Selection selection, std::uint64_t seed)
    : dtype_(dtype), selection_(selection), seed_(seed), table_(table_size), narrowed_(table_size * size_of(dtype)) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  for (float& number : table_) number = normal(engine);
  narrow(table_.data(), dtype_, narrowed_.data(), static_cast<std::int64_t>(table_size));
}

void BenchInputs::fill(LayerMemory& memory, const std::vector<LayerTensor>& tensors, const LayerTensor* dout,
                       const Partition& partition, int rank, std::uint64_t set, Staging& staging) const {
  std::uint64_t index = 0;
  const auto stream = [&](float scale, bool in_runs) {
    return Stream{mix(mix(seed_ + set * 1024) + index++), scale, in_runs};
  };
  for (const LayerTensor& tensor : tensors) {
    // A parameter's fan-in is its next to last extent: [G, inputs, outputs].
    const auto fan_in = static_cast<float>(tensor.per_token ? 1 : tensor.shape[tensor.shape.size() - 2].size);
    fill(memory.input(tensor.name), tensor, partition, rank,
         stream(1 / std::sqrt(fan_in), selection_ == Selection::local && tensor.name == "q"), staging);
  }
  if (dout) fill(memory.dout(), *dout, partition, rank, stream(1, false), staging);
}

void BenchInputs::fill(DeviceTensor& destination, const LayerTensor& tensor, const Partition& partition, int rank,
                       const Stream& numbers, Staging& staging) const {
  const std::int64_t width = tensor.elements_per_row();
  const std::size_t row_bytes = static_cast<std::size_t>(width) * size_of(dtype_);
  const auto upload = [&](std::byte* to, std::int64_t first_row, std::int64_t rows) {
    staging.upload(to, rows, row_bytes, [&](std::int64_t first, std::int64_t count, void* host) {
      for (std::int64_t i = 0; i < count; ++i)
        write_row(numbers, first_row + first + i, width,
                  static_cast<std::byte*>(host) + static_cast<std::size_t>(i) * row_bytes);
    });
  };
  auto* to = static_cast<std::byte*>(destination.view().data);
  if (!tensor.per_token) return upload(to, 0, tensor.shape[0].size);
  for (const TokenRange& range : partition.ranges(rank)) {
    upload(to, range.begin, range.size());
    to += static_cast<std::size_t>(range.size()) * row_bytes;
  }
}

const float* BenchInputs::piece(const Stream& numbers, std::uint64_t row, std::uint64_t index) const {
  return table_.data() + mix(mix(numbers.key + row) + index) % (table_size - piece_size);
}

void BenchInputs::write_row(const Stream& numbers, std::int64_t row, std::int64_t width, std::byte* destination) const {
  const std::size_t element = size_of(dtype_);
  std::array<float, piece_size> mixed;
  for (std::int64_t begin = 0; begin < width; begin += piece_size) {
    const std::int64_t count = std::min(piece_size, width - begin);
    const auto index = static_cast<std::uint64_t>(begin / piece_size);
    const float* own = piece(numbers, static_cast<std::uint64_t>(row), index);
    std::byte* to = destination + static_cast<std::size_t>(begin) * element;
    if (numbers.scale == 1 && !numbers.in_runs) {
      const auto at = static_cast<std::size_t>(own - table_.data());
      std::memcpy(to, narrowed_.data() + at * element, static_cast<std::size_t>(count) * element);
      continue;
    }
    const float* shared = own;
    if (numbers.in_runs) shared = piece(numbers, base_rows + static_cast<std::uint64_t>(row / local_run), index);
    const float own_share = numbers.in_runs ? local_noise : 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
      mixed[i] = numbers.scale * shared[i] + own_share * own[i];
    narrow(mixed.data(), dtype_, to, count);
  }
}

}  // namespace cpnsa::tool
