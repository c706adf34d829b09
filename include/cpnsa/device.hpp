#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cpnsa/stages.hpp"

namespace cpnsa {

/// A queue of work in order. For CUDA `handle` is a cudaStream_t; the CPU device runs everything at once and ignores
/// it.
struct Stream {
  void* handle = nullptr;
};

/// A point in a stream. For CUDA `handle` is a cudaEvent_t.
struct Event {
  void* handle = nullptr;
};

/// Computes. One virtual per stage of docs/algorithm.md, and the few memory verbs that moving data takes. Everything
/// that takes a Stream is enqueued and returns at once, without allocating and without waiting for the host.
///
/// Errors: UnsupportedError, ArgumentError before anything is enqueued; DeviceError when the device fails.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;    ///< "cpu", "cuda"
  virtual std::string description() const = 0;  ///< for people, e.g. the card's name
  virtual bool host_accessible() const = 0;     ///< whether the host may read and write the device's memory

  /// Throws UnsupportedError, listing what is supported, unless every stage runs with this configuration and type.
  virtual void check_supported(const Config& config, DType dtype) const = 0;

  /// Throws ArgumentError unless `pointer` is this device's memory, aligned for its kernels. Null with 0 bytes passes.
  virtual void check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const = 0;

  /// Throws ArgumentError unless the stream is one of this device.
  virtual void check_stream(Stream) const {}

  /// Makes the device current on the calling thread; called at each public entry of the library.
  virtual void activate() {}

  /// Expires with the device: for what keeps its events or buffers, and may outlive it.
  std::weak_ptr<const void> lifetime() const { return lifetime_; }

  // --- memory; never called inside a step ---------------------------------------------------------------------
  virtual void* allocate(std::size_t bytes) = 0;  ///< 256-byte aligned; DeviceError when there is none left
  virtual void deallocate(void* pointer) noexcept = 0;
  virtual void* allocate_host(std::size_t bytes) = 0;  ///< host memory that copies run fastest from (pinned)
  virtual void deallocate_host(void* pointer) noexcept = 0;

  // --- streams and events --------------------------------------------------------------------------------------
  virtual Stream create_stream() = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;
  virtual void synchronize(Stream stream) = 0;  ///< waits on the host until the stream has drained
  virtual Event create_event() = 0;
  virtual void destroy_event(Event event) noexcept = 0;
  virtual void record(Event event, Stream stream) = 0;
  virtual void wait(Stream stream, Event event) = 0;  ///< later work of `stream` runs after the recorded point
  virtual bool done(Event event) = 0;                 ///< whether the recorded point has been reached; never waits
  virtual double seconds_between(Event first, Event second) = 0;  ///< both reached

  // --- data movement -------------------------------------------------------------------------------------------
  virtual void copy(void* destination, const void* source, std::size_t bytes, Stream) = 0;  ///< host or device, any way
  virtual void fill_zero(void* destination, std::size_t bytes, Stream) = 0;
  virtual void copy_rows(const CopyRows&, Stream) = 0;
  virtual void add_rows(const AddRows&, Stream) = 0;
  virtual void pack_blocks(const PackBlocks&, Stream) = 0;
  virtual void add_blocks(const AddBlocks&, Stream) = 0;
  virtual void convert(const Convert&, Stream) = 0;

  // --- stages --------------------------------------------------------------------------------------------------
  /// Bytes of StageContext::scratch that the stages of a rank of this size want, the largest of them.
  virtual std::size_t scratch_bytes(const ProblemSize&) const { return 0; }
  /// Prepares a rank's segments; called when planning, may allocate.
  virtual std::unique_ptr<SegmentSchedule> schedule(std::span<const Segment> segments, const Config&);

  /// Whether selected_attention() of these queries can do combine_branches()'s work as well, at less cost.
  virtual bool combines_selected(const Config&, DType, const SegmentSchedule&) const { return false; }

  virtual void compress(const Compress&, Stream) = 0;
  virtual void compressed_attention(const CompressedAttention&, Stream) = 0;
  virtual void select_blocks(const SelectBlocks&, Stream) = 0;
  virtual void mark_demand(const MarkDemand&, Stream) = 0;
  virtual void selected_attention(const SelectedAttention&, Stream) = 0;
  virtual void window_attention(const WindowAttention&, Stream) = 0;
  virtual void combine_branches(const CombineBranches&, Stream) = 0;

  virtual void combine_branches_backward(const CombineBranchesBackward&, Stream) = 0;
  virtual void window_attention_backward(const WindowAttentionBackward&, Stream) = 0;
  virtual void selected_attention_backward(const SelectedAttentionBackward&, Stream) = 0;
  virtual void compressed_attention_backward(const CompressedAttentionBackward&, Stream) = 0;
  virtual void compress_backward(const CompressBackward&, Stream) = 0;

 private:
  std::shared_ptr<const void> lifetime_ = std::make_shared<char>();
};

}  // namespace cpnsa
