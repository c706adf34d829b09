// A device that acts as a GPU on machines without one: the host must not access its memory, and copies happen when the
// stream is synchronized, not before. Host memory that a communicator caches is freed with the device.

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/cpu/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

class FarDevice final : public cpu::CpuDevice {
 public:
  ~FarDevice() override {
    for (void* memory : host_memory_) CpuDevice::deallocate_host(memory);
  }

  bool host_accessible() const override { return false; }

  void* allocate_host(std::size_t bytes) override {
    return *host_memory_.insert(CpuDevice::allocate_host(bytes)).first;
  }
  void deallocate_host(void* memory) noexcept override {
    host_memory_.erase(memory);
    CpuDevice::deallocate_host(memory);
  }

  void copy(void* destination, const void* source, std::size_t bytes, Stream) override {
    copies_.push_back({destination, source, bytes});
  }
  // In the order of the stream: after the copies before it.
  void fill_zero(void* destination, std::size_t bytes, Stream stream) override {
    synchronize(stream);
    CpuDevice::fill_zero(destination, bytes, stream);
  }
  using CpuDevice::run;
  void run(const AddRows& op, Stream stream) override {
    synchronize(stream);
    CpuDevice::run(op, stream);
  }
  void synchronize(Stream) override {
    for (const Copy& copy : copies_)
      if (copy.bytes > 0) std::memcpy(copy.destination, copy.source, copy.bytes);  // with 0 bytes both may be null
    copies_.clear();
  }

 private:
  struct Copy {
    void* destination;
    const void* source;
    std::size_t bytes;
  };
  std::vector<Copy> copies_;
  std::set<void*> host_memory_;
};

const bool registered =
    add(devices(), DeviceBackend{"far", [] { return std::make_unique<FarDevice>(); }, {DType::f32}});

}  // namespace
}  // namespace cpnsa::test
