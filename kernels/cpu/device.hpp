#pragma once

#include "cpnsa/cpu/device.hpp"

namespace cpnsa::cpu {

/// Runs every call at once on the calling thread; streams are ignored and an event is a reading of the clock. Stages
/// keep tiles of a fixed size of their own and want no scratch.
class CpuDevice : public Device {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string description() const override;
  bool host_accessible() const override { return true; }
  void check_supported(const Config& config, DType dtype) const override;
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
  void copy_rows(const CopyRows&, Stream) override;
  void add_rows(const AddRows&, Stream) override;
  void pack_blocks(const PackBlocks&, Stream) override;
  void add_blocks(const AddBlocks&, Stream) override;
  void convert(const Convert&, Stream) override;

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
};

}  // namespace cpnsa::cpu
