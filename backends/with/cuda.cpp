#include <cuda_runtime_api.h>

#include <string>

#include "backends/backends.hpp"
#include "cpnsa/cuda/device.hpp"
#include "cpnsa/cuda/info.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::backends {
namespace {

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw DeviceError(std::string(call) + ": " + cudaGetErrorString(status));
}

class CudaGraph final : public CapturedWork {
 public:
  CudaGraph(cudaStream_t stream, const std::function<void()>& enqueue) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph));
      if (graph) static_cast<void>(cudaGraphDestroy(graph));
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&work_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(status, "cudaGraphInstantiate");
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override { static_cast<void>(cudaGraphExecDestroy(work_)); }

  void enqueue(Stream stream) override {
    check(cudaGraphLaunch(work_, static_cast<cudaStream_t>(stream.handle)), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t work_ = nullptr;
};

}  // namespace

int cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;  // it fails where there is no GPU or no driver
}

std::unique_ptr<Device> make_cuda_device(int index) {
  return cuda::make_device(index);
}

std::vector<LibraryVersion> cuda_versions() {
  return cuda::library_versions();
}

std::vector<GpuInfo> cuda_gpus() {
  return cuda::gpus();
}

std::vector<OpKernel> cuda_kernels_of(const Config& config, DType dtype, int capability) {
  return cuda::kernels_of(config, dtype, capability);
}

DecodeMemory cuda_decode_memory(const DecodeSize& size) {
  return cuda::decode_memory(size);
}

std::unique_ptr<CapturedWork> capture(Stream stream, const std::function<void()>& enqueue) {
  return std::make_unique<CudaGraph>(static_cast<cudaStream_t>(stream.handle), enqueue);
}

}  // namespace cpnsa::backends
