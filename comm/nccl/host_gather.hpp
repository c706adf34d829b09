#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace cpnsa::nccl {

/// Memory and a stream with which what lies in host memory is gathered through the card. Grows to the largest size
/// asked for; the card of the communicator is current wherever it is used.
class HostGather {
 public:
  explicit HostGather(int device) : device_(device) {}
  HostGather(const HostGather&) = delete;
  HostGather& operator=(const HostGather&) = delete;
  ~HostGather();

  /// At least so many bytes in both memories.
  void reserve(std::size_t bytes);
  cudaStream_t stream() const { return stream_; }
  std::byte* host() const { return host_; }
  std::byte* card() const { return card_; }

  void to_card(std::size_t offset, std::size_t bytes);
  void to_host(std::size_t bytes);

 private:
  void release() noexcept;

  int device_;
  cudaStream_t stream_ = nullptr;
  std::byte* host_ = nullptr;
  std::byte* card_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace cpnsa::nccl
