#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

int cuda_devices() {
  return 0;
}

std::unique_ptr<Device> make_cuda_device(int) {
  refuse("CUDA", "CPNSA_CUDA");
}

std::vector<LibraryVersion> cuda_versions() {
  return {};
}

std::vector<GpuInfo> cuda_gpus() {
  return {};
}

std::vector<OpKernel> cuda_kernels_of(const Config&, DType, int) {
  refuse("CUDA", "CPNSA_CUDA");
}

DecodeMemory cuda_decode_memory(const DecodeSize&) {
  refuse("CUDA", "CPNSA_CUDA");
}

std::unique_ptr<CapturedWork> capture(Stream, const std::function<void()>&) {
  refuse("CUDA", "CPNSA_CUDA");
}

}  // namespace cpnsa::backends
