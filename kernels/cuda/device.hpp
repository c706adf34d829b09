#pragma once

#include <cuda_runtime_api.h>

#include "cpnsa/cuda/device.hpp"
#include "kernels/cuda/common/handles.hpp"

namespace cpnsa::cuda {

/// One card. Calls that enqueue expect it to be current on the calling thread: activate(), or the entry of the library
/// that calls it.
class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index);

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  bool host_accessible() const override { return false; }
  void check_supported(const Config& config, DType dtype) const override;
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

  void copy(void* destination, const void* source, std::size_t bytes, Stream) override;
  void fill_zero(void* destination, std::size_t bytes, Stream) override;
  void copy_rows(const CopyRows&, Stream) override;
  void add_rows(const AddRows&, Stream) override;
  void pack_blocks(const PackBlocks&, Stream) override;
  void add_blocks(const AddBlocks&, Stream) override;
  void convert(const Convert&, Stream) override;

  std::size_t scratch_bytes(const ProblemSize&) const override;
  std::unique_ptr<SegmentSchedule> schedule(std::span<const Segment> segments, const Config&) override;

  bool combines_selected(const Config&, DType, const SegmentSchedule&) const override;

  void compress(const Compress&, Stream) override;
  void compressed_attention(const CompressedAttention&, Stream) override;
  void select_blocks(const SelectBlocks&, Stream) override;
  void mark_demand(const MarkDemand&, Stream) override;
  void selected_attention(const SelectedAttention&, Stream) override;
  void window_attention(const WindowAttention&, Stream) override;
  void combine_branches(const CombineBranches&, Stream) override;

  void combine_branches_backward(const CombineBranchesBackward&, Stream) override;
  void window_attention_backward(const WindowAttentionBackward&, Stream) override;
  void selected_attention_backward(const SelectedAttentionBackward&, Stream) override;
  void compressed_attention_backward(const CompressedAttentionBackward&, Stream) override;
  void compress_backward(const CompressBackward&, Stream) override;

 private:
  int index_;
  std::string description_;
  std::unique_ptr<Handles> handles_;  // made once the card is current
};

}  // namespace cpnsa::cuda
