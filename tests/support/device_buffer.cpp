#include "tests/support/device_buffer.hpp"

#include <algorithm>
#include <cstring>

namespace cpnsa::test {

DeviceBuffer::DeviceBuffer(Device& device, std::size_t bytes)
    : device_(&device), memory_(device, std::max<std::size_t>(bytes, 1)), bytes_(bytes) {
  poison();
}

DeviceBuffer::DeviceBuffer(Device& device, DType dtype, const Values& values)
    : DeviceBuffer(device, encode(dtype, values)) {}

void DeviceBuffer::fill(unsigned char byte) {
  constexpr std::size_t longest = std::size_t{1} << 20;
  const std::vector<std::byte> pattern(std::min(bytes_, longest), static_cast<std::byte>(byte));
  write(pattern.data(), pattern.size());
  auto* const begin = static_cast<std::byte*>(data());
  for (std::size_t filled = pattern.size(); filled < bytes_;) {  // each copy doubles the filled part
    const std::size_t next = std::min(filled, bytes_ - filled);
    device_->copy(begin + filled, begin, next, Stream{});
    filled += next;
  }
  device_->synchronize(Stream{});
}

void DeviceBuffer::write(const std::byte* source, std::size_t bytes) {
  if (bytes == 0) return;
  device_->copy(data(), source, bytes, Stream{});
  device_->synchronize(Stream{});
}

std::vector<std::byte> DeviceBuffer::read() const {
  std::vector<std::byte> bytes(bytes_);
  if (bytes_ == 0) return bytes;
  device_->copy(bytes.data(), data(), bytes_, Stream{});
  device_->synchronize(Stream{});
  return bytes;
}

Values DeviceBuffer::values(DType dtype) const {
  const std::vector<std::byte> bytes = read();
  return decode(dtype, bytes.data(), static_cast<std::int64_t>(bytes_ / size_of(dtype)));
}

std::vector<std::int32_t> DeviceBuffer::indices() const {
  const std::vector<std::byte> bytes = read();
  std::vector<std::int32_t> result(bytes_ / sizeof(std::int32_t));
  if (bytes_ != 0) std::memcpy(result.data(), bytes.data(), bytes_);
  return result;
}

DeviceBuffer poisoned_indices(Device& device, std::int64_t count) {
  DeviceBuffer buffer(device, static_cast<std::size_t>(count) * sizeof(std::int32_t));
  buffer.fill(0x7f);
  return buffer;
}

}  // namespace cpnsa::test
