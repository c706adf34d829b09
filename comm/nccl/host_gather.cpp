#include "comm/nccl/host_gather.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "comm/nccl/nccl_call.hpp"

namespace cpnsa::nccl {
namespace {

constexpr std::size_t least_bytes = std::size_t{1} << 16;

}  // namespace

HostGather::~HostGather() {
  try {
    const CurrentDevice current(device_);
    // What waits for ranks that never come still uses the memory, and freeing it would wait for that.
    if (stream_ && cudaStreamQuery(stream_) == cudaErrorNotReady) return;
    release();
    if (stream_) cudaStreamDestroy(stream_);
  } catch (const std::exception&) {  // the card is lost, and its memory with it
  }
}

void HostGather::reserve(std::size_t bytes) {
  if (!stream_) check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  if (bytes <= bytes_) return;
  release();
  const std::size_t wanted = std::max(bytes, least_bytes);
  check(cudaMallocHost(reinterpret_cast<void**>(&host_), wanted), "cudaMallocHost");
  check(cudaMalloc(reinterpret_cast<void**>(&card_), wanted), "cudaMalloc");
  bytes_ = wanted;
}

void HostGather::to_card(std::size_t offset, std::size_t bytes) {
  check(cudaMemcpyAsync(card_ + offset, host_ + offset, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
}

void HostGather::to_host(std::size_t bytes) {
  check(cudaMemcpyAsync(host_, card_, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
}

void HostGather::release() noexcept {
  bytes_ = 0;
  cudaFree(std::exchange(card_, nullptr));
  cudaFreeHost(std::exchange(host_, nullptr));
}

}  // namespace cpnsa::nccl
