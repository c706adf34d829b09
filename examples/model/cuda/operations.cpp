#include "examples/model/cuda/operations.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "cpnsa/error.hpp"
#include "examples/model/cuda/check.hpp"

namespace model {

using cuda::check;

std::unique_ptr<Operations> make_cuda_operations(cpnsa::Device& device, DType dtype) {
  if (dtype != DType::bf16)
    throw cpnsa::UnsupportedError("--dtype: found " + std::string(name_of(dtype)) +
                                  ", expected bf16: the model on CUDA");
  return std::make_unique<CudaOperations>(device);
}

// A memory pool of the CUDA runtime, one per rank: it caches released memory and reuses it in the order of the stream.
CudaOperations::CudaOperations(cpnsa::Device& device)
    : Operations(device, device.create_stream(), DType::f32, DType::bf16) {
  device.activate();
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  check(cudaGetDevice(&properties.location.id), "cudaGetDevice");
  check(cudaMemPoolCreate(&pool_, &properties), "cudaMemPoolCreate");
  std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
  check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  check(cublasCreate(&cublas_), "cublasCreate");
  check(cublasSetStream(cublas_, native()), "cublasSetStream");
}

// An error here cannot be handled: nothing may be thrown.
CudaOperations::~CudaOperations() {
  static_cast<void>(cudaStreamSynchronize(native()));
  static_cast<void>(cublasDestroy(cublas_));
  static_cast<void>(cudaMemPoolDestroy(pool_));
  device().destroy_stream(stream());
}

void* CudaOperations::allocate_on_device(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocFromPoolAsync(&memory, std::max<std::size_t>(bytes, 1), pool_, native());
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t left = 0, total = 0;
    check(cudaMemGetInfo(&left, &total), "cudaMemGetInfo");
    throw cpnsa::DeviceError("found no memory of the GPU for " + std::to_string(bytes) + " bytes, " +
                             std::to_string(left) + " of " + std::to_string(total) +
                             " are free, expected enough for the model; try fewer tokens or a smaller width");
  }
  check(status, "cudaMallocFromPoolAsync");
  return memory;
}

void CudaOperations::release_on_device(void* pointer) noexcept {
  if (cudaFreeAsync(pointer, native()) != cudaSuccess) static_cast<void>(cudaGetLastError());
}

}  // namespace model
