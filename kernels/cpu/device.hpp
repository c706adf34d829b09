#pragma once

#include "cpnsa/cpu/device.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {

/// Runs every call at once on the calling thread. Streams are ignored; an event is a reading of the clock. Ops allocate
/// their tiles, which are of a fixed size, and need no scratch.
class CpuDevice : public DeviceImplementation<CpuDevice> {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string description() const override;
  bool host_accessible() const override { return true; }
  void check_supported(const Config& config, DType dtype) const override;
  void check_decode_supported(const Config& config, DType dtype, std::int64_t page) const override;
  void check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const override;

  void* allocate(std::size_t bytes) override;
  void deallocate(void* pointer) noexcept override;
  void* allocate_host(std::size_t bytes) override;
  void deallocate_host(void* pointer) noexcept override;

  Stream create_stream() override { return {}; }
  void destroy_stream(Stream) noexcept override {}
  void synchronize(Stream) override {}
  Event create_event() override;
  void destroy_event(Event event) noexcept override;
  void record(Event event, Stream) override;
  void wait(Stream, Event) override {}
  bool done(Event) override { return true; }
  double seconds_between(Event first, Event second) override;

  void copy(void* destination, const void* source, std::size_t bytes, Stream) override;
  void fill_zero(void* destination, std::size_t bytes, Stream) override;

  std::size_t decode_schedule_bytes(const DecodeSize& size) const override;

  template <class Op>
  void enqueue(const Op& op, Stream) {
    run_op(op);
  }
};

}  // namespace cpnsa::cpu
