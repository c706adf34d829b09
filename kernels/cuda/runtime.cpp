#include "kernels/cuda/device.hpp"

// The GPU as a Device: its memory, streams, events and checks. Which kernels run is decided in device.cpp.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "cpnsa/error.hpp"
#include "cpnsa/log.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/limits.hpp"
#include "kernels/cuda/sm80/compression/compress_layout.hpp"
#include "kernels/cuda/sm90/run_op.hpp"

namespace cpnsa::cuda {
namespace {

constexpr std::uintptr_t tensor_alignment = 16;  // of the widest load
constexpr int oldest_capability = 80;

cudaStream_t native(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

cudaEvent_t native(Event event) {
  return static_cast<cudaEvent_t>(event.handle);
}

// For destructors, which cannot throw: drops the error of a device that fails while its resources are released.
void ignore(cudaError_t status) noexcept {
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
}

int chosen_card(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    ignore(status);
    throw DeviceError(fmt::format("cuda device: found no GPU ({}), expected one of compute capability 8.0 or later",
                                  cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status)));
  }
  if (index == current_device) check(cudaGetDevice(&index), "cudaGetDevice");
  if (index < 0 || index >= count)
    throw DeviceError(
        fmt::format("cuda device: found index {}, expected one below {}, the number of GPUs", index, count));
  return index;
}

std::string_view kind_of(cudaMemoryType type) {
  switch (type) {
    case cudaMemoryTypeUnregistered: return "host memory";
    case cudaMemoryTypeHost: return "pinned host memory";
    case cudaMemoryTypeDevice: return "device memory";
    case cudaMemoryTypeManaged: return "managed memory";
  }
  return "memory of an unknown kind";
}

}  // namespace

std::unique_ptr<Device> make_device(int index) {
  return std::make_unique<CudaDevice>(chosen_card(index));
}

CudaDevice::CudaDevice(int index) : index_(index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major * 10 + properties.minor < oldest_capability)
    throw UnsupportedError(
        fmt::format("cuda device {}: found {} of compute capability {}.{}, supported are 8.0 and later", index,
                    properties.name, properties.major, properties.minor));
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  description_ = fmt::format("{}, {} SMs, {} GiB, compute capability {}.{}, driver of CUDA {}.{}", properties.name,
                             properties.multiProcessorCount, properties.totalGlobalMem >> 30, properties.major,
                             properties.minor, driver / 1000, driver % 1000 / 10);
  gpu_ = {10 * properties.major + properties.minor, properties.multiProcessorCount};
  activate();
  handles_ = std::make_unique<Handles>();
}

void CudaDevice::check_supported(const Config& config, DType dtype) const {
  check_limits(config, dtype);
  SelectBlocks select{};
  SelectedAttentionBackward selected{};  // whose kernels serve no layer that the forward's do not
  select.config = selected.config = &config;
  select.dtype = selected.dtype = dtype;
  if (gpu_.is_hopper() && !(sm90::serves(config, dtype) && sm90::serves(select) && sm90::serves(selected)))
    warn_once("portable kernels " + config.describe(),
              fmt::format("cuda device {}: all or some stages with head dimensions {} and {}, blocks of {} tokens and "
                          "softmax scale {} run on the portable kernels, which are slower than Hopper's own; `cpnsa "
                          "info` lists the kernel of each stage and why",
                          index_, config.head_dim_qk, config.head_dim_v, config.select_block, config.scale()));
  check(cudaSetDevice(index_), "cudaSetDevice");
  sm80::prepare_compress(config, dtype, handles_->products);
}

void CudaDevice::check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const {
  if (bytes == 0) return;
  if (!pointer)
    throw ArgumentError(
        fmt::format("{}: found a null pointer, expected {} bytes of memory of cuda device {}", name, bytes, index_));
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer), "cudaPointerGetAttributes");
  const bool on_device = attributes.type == cudaMemoryTypeDevice;
  if (!on_device && attributes.type != cudaMemoryTypeManaged)
    throw ArgumentError(
        fmt::format("{}: found {}, expected memory of cuda device {}", name, kind_of(attributes.type), index_));
  if (on_device && attributes.device != index_)
    throw ArgumentError(fmt::format("{}: found memory of cuda device {}, expected that of cuda device {}", name,
                                    attributes.device, index_));
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % tensor_alignment != 0)
    throw ArgumentError(
        fmt::format("{}: found address {:#x}, expected one aligned to {} bytes", name, address, tensor_alignment));
}

void CudaDevice::check_stream(Stream stream) const {
  if (!stream.handle) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(native(stream), &capture), "cudaStreamIsCapturing");
  if (capture != cudaStreamCaptureStatusNone) return;  // cudaStreamGetDevice fails then
  int device = 0;
  check(cudaStreamGetDevice(native(stream), &device), "cudaStreamGetDevice");
  if (device != index_)
    throw ArgumentError(
        fmt::format("stream: found one of cuda device {}, expected one of cuda device {}", device, index_));
}

void CudaDevice::activate() {
  check(cudaSetDevice(index_), "cudaSetDevice");
}

void* CudaDevice::allocate(std::size_t bytes) {
  activate();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    ignore(status);
    std::size_t left = 0, total = 0;
    check(cudaMemGetInfo(&left, &total), "cudaMemGetInfo");
    throw DeviceError(
        fmt::format("cuda device {}: no memory for {} bytes, {} of {} are free", index_, bytes, left, total));
  }
  check(status, "cudaMalloc");
  return memory;
}

void CudaDevice::deallocate(void* pointer) noexcept {
  ignore(cudaFree(pointer));
}

void* CudaDevice::allocate_host(std::size_t bytes) {
  activate();
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, std::max<std::size_t>(bytes, 1), cudaHostAllocPortable), "cudaHostAlloc");
  return memory;
}

void CudaDevice::deallocate_host(void* pointer) noexcept {
  if (pointer) ignore(cudaFreeHost(pointer));
}

// Non-blocking: the legacy default stream, which a caller may work on, does not order it.
Stream CudaDevice::create_stream() {
  activate();
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return {stream};
}

void CudaDevice::destroy_stream(Stream stream) noexcept {
  if (stream.handle) ignore(cudaStreamDestroy(native(stream)));
}

void CudaDevice::synchronize(Stream stream) {
  activate();
  check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize");
}

Event CudaDevice::create_event() {
  activate();
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return {event};
}

void CudaDevice::destroy_event(Event event) noexcept {
  if (event.handle) ignore(cudaEventDestroy(native(event)));
}

void CudaDevice::record(Event event, Stream stream) {
  check(cudaEventRecord(native(event), native(stream)), "cudaEventRecord");
}

void CudaDevice::wait(Stream stream, Event event) {
  check(cudaStreamWaitEvent(native(stream), native(event), 0), "cudaStreamWaitEvent");
}

bool CudaDevice::done(Event event) {
  const cudaError_t status = cudaEventQuery(native(event));
  if (status == cudaErrorNotReady) {
    ignore(status);  // no error, yet the runtime notes it as the last one
    return false;
  }
  check(status, "cudaEventQuery");
  return true;
}

double CudaDevice::seconds_between(Event first, Event second) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, native(first), native(second)), "cudaEventElapsedTime");
  return milliseconds * 1e-3;
}

void CudaDevice::copy(void* destination, const void* source, std::size_t bytes, Stream stream) {
  if (bytes > 0)
    check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, native(stream)), "cudaMemcpyAsync");
}

void CudaDevice::fill_zero(void* destination, std::size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(destination, 0, bytes, native(stream)), "cudaMemsetAsync");
}

}  // namespace cpnsa::cuda
