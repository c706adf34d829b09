// The part of the CUDA runtime that the device calls, on host memory: a GPU of compute capability 9.0, or of the one in
// CPNSA_EMULATED_CAPABILITY (80 or later). All streams run work at once.

#include <cublasLt.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "tests/emulation/tensor_copy.hpp"
#include "tests/emulation/thread_block.hpp"

namespace {

constexpr int multiprocessors = 3;  // few, so that persistent blocks have several items
constexpr std::size_t allocation_alignment = 256;
constexpr std::size_t memory_bytes = std::size_t{1} << 34;

int capability() {
  const char* const set = std::getenv("CPNSA_EMULATED_CAPABILITY");
  return set ? std::atoi(set) : 90;
}

// The allocations, each with its kind of memory.
class Allocations {
 public:
  void* take(std::size_t bytes, cudaMemoryType type) {
    const std::size_t rounded = (bytes + allocation_alignment - 1) / allocation_alignment * allocation_alignment;
    void* const memory = std::aligned_alloc(allocation_alignment, rounded);
    if (!memory) return nullptr;
    std::memset(memory, 0xff, rounded);  // NaN
    const std::lock_guard lock(mutex_);
    blocks_[static_cast<unsigned char*>(memory)] = {rounded, type};
    return memory;
  }

  bool release(void* memory) {
    const std::lock_guard lock(mutex_);
    if (blocks_.erase(static_cast<unsigned char*>(memory)) == 0) return false;
    std::free(memory);
    return true;
  }

  cudaMemoryType type_of(const void* pointer) {
    const auto* const byte = static_cast<const unsigned char*>(pointer);
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<unsigned char*>(byte));
    if (after == blocks_.begin()) return cudaMemoryTypeUnregistered;
    const auto& [start, block] = *--after;
    return byte < start + block.bytes ? block.type : cudaMemoryTypeUnregistered;
  }

 private:
  struct Block {
    std::size_t bytes;
    cudaMemoryType type;
  };
  std::mutex mutex_;
  std::map<unsigned char*, Block> blocks_;
};

Allocations& allocations() {
  static Allocations all;
  return all;
}

using Clock = std::chrono::steady_clock;

cudaError_t take(void** memory, std::size_t bytes, cudaMemoryType type) {
  *memory = allocations().take(bytes, type);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t release(void* memory) {
  return !memory || allocations().release(memory) ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

struct CUstream_st {};
struct CUevent_st {
  Clock::time_point recorded;
};

extern "C" {

// --- devices
// ----------------------------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = multiprocessors;
  properties->totalGlobalMem = memory_bytes;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&emulation::encode_tiled) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// --- errors
// -----------------------------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) {
  return "cudaError";
}
const char* cudaGetErrorString(cudaError_t) {
  return "refused by the emulated runtime";
}
const char* cublasLtGetStatusName(cublasStatus_t) {
  return "CUBLAS_STATUS";
}
const char* cublasLtGetStatusString(cublasStatus_t) {
  return "not emulated";
}

// --- memory
// -----------------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return take(memory, bytes, cudaMemoryTypeDevice);
}
cudaError_t cudaFree(void* memory) {
  return release(memory);
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  return take(memory, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return take(memory, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaFreeHost(void* memory) {
  return release(memory);
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = memory_bytes;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  attributes->type = allocations().type_of(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* destination, const void* source, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memmove(destination, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* destination, int value, std::size_t bytes, cudaStream_t) {
  std::memset(destination, value, bytes);
  return cudaSuccess;
}

// --- streams and events
// -------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetDevice(cudaStream_t, int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = Clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t second) {
  *milliseconds = std::chrono::duration<float, std::milli>(second->recorded - first->recorded).count();
  return cudaSuccess;
}

}  // extern "C"
