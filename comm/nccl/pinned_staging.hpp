#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace cpnsa::nccl {

/// Pinned host memory, device memory of the same size and a stream, with which host memory is gathered by NCCL. Grows
/// to the largest size asked for. Its device must be the calling thread's current one in every call but the destructor.
class PinnedStaging {
 public:
  explicit PinnedStaging(int device) : device_(device) {}
  PinnedStaging(const PinnedStaging&) = delete;
  PinnedStaging& operator=(const PinnedStaging&) = delete;
  ~PinnedStaging();

  /// Makes both memories `bytes` long at least.
  void reserve(std::size_t bytes);
  cudaStream_t stream() const { return stream_; }
  std::byte* host() const { return host_; }
  std::byte* device() const { return device_memory_; }

  void to_device(std::size_t offset, std::size_t bytes);
  void to_host(std::size_t bytes);

 private:
  void release() noexcept;

  int device_;
  cudaStream_t stream_ = nullptr;
  std::byte* host_ = nullptr;
  std::byte* device_memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace cpnsa::nccl
