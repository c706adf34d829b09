#pragma once

#include <cuda_runtime_api.h>

#include "cpnsa/cuda/device.hpp"
#include "kernels/cuda/common/gpu.hpp"
#include "kernels/cuda/common/handles.hpp"
#include "kernels/cuda/profiler/ranges.hpp"

namespace cpnsa::cuda {

/// One GPU. Calls that enqueue expect it to be current on the calling thread: activate(), or the entry of the library
/// that calls it.
class CudaDevice final : public DeviceImplementation<CudaDevice> {
 public:
  explicit CudaDevice(int index);

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  bool host_accessible() const override { return false; }
  void check_supported(const Config& config, DType dtype) const override;
  void check_decode_supported(const Config& config, DType dtype, std::int64_t page) const override;
  void check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const override;
  void check_stream(Stream stream) const override;
  void activate() override;

  void* allocate(std::size_t bytes) override;
  void deallocate(void* pointer) noexcept override;
  void* allocate_host(std::size_t bytes) override;
  void deallocate_host(void* pointer) noexcept override;

  Stream create_stream() override;
  void destroy_stream(Stream stream) noexcept override;
  void synchronize(Stream stream) override;
  Event create_event() override;
  void destroy_event(Event event) noexcept override;
  void record(Event event, Stream stream) override;
  void wait(Stream stream, Event event) override;
  bool done(Event event) override;
  double seconds_between(Event first, Event second) override;
  void begin_range(const char* name) override { cuda::begin_range(name); }
  void end_range() noexcept override { cuda::end_range(); }

  void copy(void* destination, const void* source, std::size_t bytes, Stream) override;
  void fill_zero(void* destination, std::size_t bytes, Stream) override;
  std::size_t scratch_bytes(const ProblemSize&) const override;
  std::size_t decode_scratch_bytes(const DecodeSize&) const override;
  std::size_t decode_schedule_bytes(const DecodeSize&) const override;
  std::unique_ptr<SegmentSchedule> schedule(std::span<const Segment> segments, const Config&) override;

  bool combines_selected(const Config&, DType, const SegmentSchedule&) const override;

  /// Launches the op's kernels; one specialization per op in device.cpp.
  template <class Op>
  void enqueue(const Op& op, Stream stream);

 private:
  /// Returns whether the GPU is a Hopper and sm90::serves(layer...), of an op's arguments or of a configuration and a
  /// type.
  template <class... Layer>
  bool on_hopper(const Layer&... layer) const;

  int index_;
  Gpu gpu_;
  std::string description_;
  std::unique_ptr<Handles> handles_;  // made once the GPU is current
};

}  // namespace cpnsa::cuda
