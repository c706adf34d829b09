#include "src/layer/parameter_values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpnsa/schema.hpp"

namespace cpnsa {
namespace {

// Eight bytes a step: parameters are megabytes.
std::uint64_t hash_of_bytes(const std::byte* data, std::size_t bytes) {
  std::uint64_t hash = 14695981039346656037ull + bytes;
  for (std::size_t at = 0; at < bytes; at += sizeof hash) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + at, std::min(sizeof word, bytes - at));
    hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

std::string parameter_values(const AttentionInputs& inputs, Device& device, Communicator& communicator, Stream stream) {
  const bool reachable = device.host_accessible();
  if (reachable) communicator.wait(device, stream);
  std::string words;
  std::vector<std::byte> copy;
  schema::for_each_parameter(
      [&](const schema::Tensor& tensor, const TensorView& view) {
        words += fmt::format(" {}=", tensor.name.view());
        if (!view) {
          words += "none";
          return;
        }
        if (!reachable) {
          copy.resize(view.bytes());
          if (!copy.empty()) device.copy(copy.data(), view.data, copy.size(), stream);
          communicator.wait(device, stream);
        }
        const auto* data = reachable ? static_cast<const std::byte*>(view.data) : copy.data();
        words += fmt::format("{:016x}", hash_of_bytes(data, view.bytes()));
      },
      inputs);
  return words;
}

}  // namespace cpnsa
