#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cpnsa/decode_ops.hpp"
#include "cpnsa/ops.hpp"
#include "cpnsa/pull_ops.hpp"

namespace cpnsa {

/// A queue whose work runs in order. For CUDA `handle` is a cudaStream_t; the CPU device runs every call at once and
/// ignores it.
struct Stream {
  void* handle = nullptr;
};

/// A point in a stream. For CUDA `handle` is a cudaEvent_t.
struct Event {
  void* handle = nullptr;
};

/// Every op of a Device, by its struct of arguments. Device, its implementations and the tests' devices are made from
/// this list.
using AllOps = JoinedOps<DeviceOps, PullOps>::type;

/// One pure virtual `run` for each op of the list. The bases form a single chain, so that a Device has one table of
/// virtual functions and each op costs one virtual call.
template <class Ops>
class OpInterface;

template <>
class OpInterface<OpList<>> {
 public:
  virtual ~OpInterface() = default;
  void run() = delete;  // ends the chain of using-declarations
};

template <class Op, class... Rest>
class OpInterface<OpList<Op, Rest...>> : public OpInterface<OpList<Rest...>> {
 public:
  using OpInterface<OpList<Rest...>>::run;
  /// Enqueues the op on the stream; see the comment of `Op` for what it computes.
  virtual void run(const Op& op, Stream stream) = 0;
};

/// Computes: `run(op, stream)` for every op of AllOps, and the few memory functions that moving data needs. A
/// function that takes a Stream enqueues its work and returns: it neither allocates nor waits on the host.
///
/// Errors: UnsupportedError and ArgumentError before anything is enqueued; DeviceError when the device fails.
class Device : public OpInterface<AllOps> {
 public:
  virtual std::string_view name() const = 0;    ///< "cpu", "cuda"
  virtual std::string description() const = 0;  ///< for people, e.g. the model of the GPU
  virtual bool host_accessible() const = 0;     ///< whether the host may read and write the device's memory

  /// Throws UnsupportedError, listing what is supported, unless every op runs with this configuration and type.
  virtual void check_supported(const Config& config, DType dtype) const = 0;

  /// Throws UnsupportedError, naming the device and listing what is supported, unless every op that decodes runs with
  /// this configuration, this type and pages of `page` tokens.
  virtual void check_decode_supported(const Config& config, DType dtype, std::int64_t page) const;

  /// Throws ArgumentError unless `pointer` is this device's memory, aligned for its kernels. Null with 0 bytes passes.
  virtual void check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const = 0;

  /// Throws ArgumentError unless the stream belongs to this device.
  virtual void check_stream(Stream) const {}

  /// Makes the device current on the calling thread; called at each public entry of the library.
  virtual void activate() {}

  /// Expires with the device. Owners of the device's events and buffers check it when they may outlive the device.
  std::weak_ptr<const void> lifetime() const { return lifetime_; }

  // --- memory; never called inside a step ---------------------------------------------------------------------
  virtual void* allocate(std::size_t bytes) = 0;  ///< 256-byte aligned; DeviceError when no memory is left
  virtual void deallocate(void* pointer) noexcept = 0;
  virtual void* allocate_host(std::size_t bytes) = 0;  ///< pinned host memory, the fastest for copies
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
  virtual double seconds_between(Event first, Event second) = 0;  ///< both must have been reached

  // --- names for profilers ------------------------------------------------------------------------------------
  /// Names what the calling thread enqueues until end_range(), which nests: NVTX ranges on CUDA. `name` is a literal.
  virtual void begin_range(const char*) {}
  virtual void end_range() noexcept {}

  // --- data movement -------------------------------------------------------------------------------------------
  /// Copies between any two of host and device memory.
  virtual void copy(void* destination, const void* source, std::size_t bytes, Stream) = 0;
  virtual void fill_zero(void* destination, std::size_t bytes, Stream) = 0;

  // --- preparation of ops --------------------------------------------------------------------------------------
  /// The largest OpContext::scratch, in bytes, that an op of a rank of this size needs.
  virtual std::size_t scratch_bytes(const ProblemSize&) const { return 0; }

  /// Bytes of DecodeContext::scratch for a decoder of this size.
  virtual std::size_t decode_scratch_bytes(const DecodeSize&) const { return 0; }
  /// Bytes of the schedule that PrepareDecode writes for a decoder of this size.
  virtual std::size_t decode_schedule_bytes(const DecodeSize&) const { return 0; }

  /// Prepares a rank's segments; called when planning, may allocate.
  virtual std::unique_ptr<SegmentSchedule> schedule(std::span<const Segment> segments, const Config&);

  /// True if SelectedAttention of these queries can also do the work of CombineBranches, at less cost.
  virtual bool combines_selected(const Config&, DType, const SegmentSchedule&) const { return false; }

 private:
  std::shared_ptr<const void> lifetime_ = std::make_shared<char>();
};

/// Base of a backend's device. Implements `run` of every op by `Backend::enqueue(op, stream)`, a member template or a
/// set of overloads, so that the backend does not repeat the list of ops.
template <class Backend, class Ops = AllOps>
class DeviceImplementation;

template <class Backend>
class DeviceImplementation<Backend, OpList<>> : public Device {};

template <class Backend, class Op, class... Rest>
class DeviceImplementation<Backend, OpList<Op, Rest...>> : public DeviceImplementation<Backend, OpList<Rest...>> {
 public:
  using DeviceImplementation<Backend, OpList<Rest...>>::run;
  void run(const Op& op, Stream stream) override { static_cast<Backend&>(*this).enqueue(op, stream); }
};

}  // namespace cpnsa
