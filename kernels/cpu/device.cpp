#include "kernels/cpu/device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>

#include "cpnsa/error.hpp"
#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/level.hpp"

namespace cpnsa::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::align_val_t alignment{256};

Clock::time_point& reading(Event event) {
  return *static_cast<Clock::time_point*>(event.handle);
}

}  // namespace

std::unique_ptr<Device> make_device() {
  check_level();
  return std::make_unique<CpuDevice>();
}

std::string CpuDevice::description() const {
  return fmt::format("CPU, {} hardware threads, one a rank", std::thread::hardware_concurrency());
}

void CpuDevice::check_supported(const Config&, DType dtype) const {
  const auto known = {DType::f64, DType::f32, DType::bf16, DType::f16};
  if (std::find(known.begin(), known.end(), dtype) == known.end())
    throw UnsupportedError(fmt::format("cpu device: found dtype number {}, supported are f64, f32, bf16 and f16",
                                       static_cast<int>(dtype)));
}

void CpuDevice::check_decode_supported(const Config& config, DType dtype, std::int64_t) const {
  check_supported(config, dtype);
}

std::size_t CpuDevice::decode_schedule_bytes(const DecodeSize& size) const {
  return DecodeSchedule::bytes(size.max_sequences);
}

// The element type is not known here, so only the alignment of the narrowest type, two bytes, can be checked.
void CpuDevice::check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const {
  if (bytes == 0) return;
  if (!pointer)
    throw ArgumentError(fmt::format("{}: found a null pointer, expected {} bytes of host memory", name, bytes));
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % alignof(std::uint16_t) != 0)
    throw ArgumentError(fmt::format("{}: found address {:#x}, expected one aligned to its elements", name, address));
}

void* CpuDevice::allocate(std::size_t bytes) {
  void* const memory = ::operator new(std::max<std::size_t>(bytes, 1), alignment, std::nothrow);
  if (!memory) throw DeviceError(fmt::format("cpu device: no memory for {} bytes", bytes));
  return memory;
}

void CpuDevice::deallocate(void* pointer) noexcept {
  ::operator delete(pointer, alignment);
}

void* CpuDevice::allocate_host(std::size_t bytes) {
  return allocate(bytes);
}

void CpuDevice::deallocate_host(void* pointer) noexcept {
  deallocate(pointer);
}

Event CpuDevice::create_event() {
  return {new Clock::time_point(Clock::now())};
}

void CpuDevice::destroy_event(Event event) noexcept {
  delete static_cast<Clock::time_point*>(event.handle);
}

void CpuDevice::record(Event event, Stream) {
  reading(event) = Clock::now();
}

double CpuDevice::seconds_between(Event first, Event second) {
  return std::chrono::duration<double>(reading(second) - reading(first)).count();
}

void CpuDevice::copy(void* destination, const void* source, std::size_t bytes, Stream) {
  if (bytes > 0) std::memmove(destination, source, bytes);
}

void CpuDevice::fill_zero(void* destination, std::size_t bytes, Stream) {
  if (bytes > 0) std::memset(destination, 0, bytes);
}

}  // namespace cpnsa::cpu
