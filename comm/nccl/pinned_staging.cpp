#include "comm/nccl/pinned_staging.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "comm/nccl/nccl_call.hpp"

namespace cpnsa::nccl {
namespace {

constexpr std::size_t min_bytes = std::size_t{1} << 16;

}  // namespace

PinnedStaging::~PinnedStaging() {
  try {
    const CurrentDevice current(device_);
    // Work that waits for ranks that never come still uses the memory, and freeing the memory would wait for the work.
    if (stream_ && cudaStreamQuery(stream_) == cudaErrorNotReady) return;
    release();
    if (stream_) cudaStreamDestroy(stream_);
  } catch (const std::exception&) {  // the device is lost, and its memory with it
  }
}

void PinnedStaging::reserve(std::size_t bytes) {
  if (!stream_) check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  if (bytes <= bytes_) return;
  release();
  const std::size_t wanted = std::max(bytes, min_bytes);
  check(cudaMallocHost(reinterpret_cast<void**>(&host_), wanted), "cudaMallocHost");
  check(cudaMalloc(reinterpret_cast<void**>(&device_memory_), wanted), "cudaMalloc");
  bytes_ = wanted;
}

void PinnedStaging::to_device(std::size_t offset, std::size_t bytes) {
  check(cudaMemcpyAsync(device_memory_ + offset, host_ + offset, bytes, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
}

void PinnedStaging::to_host(std::size_t bytes) {
  check(cudaMemcpyAsync(host_, device_memory_, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
}

void PinnedStaging::release() noexcept {
  bytes_ = 0;
  cudaFree(std::exchange(device_memory_, nullptr));
  cudaFreeHost(std::exchange(host_, nullptr));
}

}  // namespace cpnsa::nccl
