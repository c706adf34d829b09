#pragma once

#include <map>
#include <memory>

#include "kernels/cpu/device.hpp"

namespace cpnsa::test {

class LateWork;

/// The CPU device with streams that run as late as they may: work runs only when the host waits for something that
/// depends on it, and what then runs does so in a random order that the streams' and the events' dependencies allow.
/// Work that nothing depends on does not run at all, so that a dependency left out is a result that is missing.
/// Devices of all ranks share one set of streams, and the host cannot read their memory by itself.
class LateDevice final : public DeviceImplementation<LateDevice> {
 public:
  LateDevice();
  ~LateDevice() override;

  std::string_view name() const override { return "late"; }
  std::string description() const override { return "CPU whose streams run late"; }
  bool host_accessible() const override { return false; }
  void check_supported(const Config& config, DType dtype) const override { inner_.check_supported(config, dtype); }
  void check_pointer(const void*, std::size_t, const std::string&) const override {}
  void* allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  void deallocate(void* pointer) noexcept override;
  void* allocate_host(std::size_t bytes) override { return inner_.allocate_host(bytes); }
  void deallocate_host(void* pointer) noexcept override;
  Stream create_stream() override;
  void destroy_stream(Stream stream) noexcept override;
  void synchronize(Stream stream) override;
  Event create_event() override;
  void destroy_event(Event event) noexcept override;
  void record(Event event, Stream stream) override;
  void wait(Stream stream, Event event) override;
  bool done(Event event) override;
  double seconds_between(Event, Event) override { return 0; }
  void copy(void* destination, const void* source, std::size_t bytes, Stream stream) override;
  void fill_zero(void* destination, std::size_t bytes, Stream stream) override;
  std::size_t scratch_bytes(const ProblemSize& size) const override { return inner_.scratch_bytes(size); }
  std::unique_ptr<SegmentSchedule> schedule(std::span<const Segment> segments, const Config& config) override {
    return inner_.schedule(segments, config);
  }

  template <class Op>
  void enqueue(const Op& op, Stream stream);

 private:
  void* stream_of(Stream stream) { return stream.handle ? stream.handle : this; }

  cpu::CpuDevice inner_;
  std::shared_ptr<LateWork> work_;
};

}  // namespace cpnsa::test
