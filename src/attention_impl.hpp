#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/schema.hpp"
#include "src/buffers.hpp"
#include "src/device_list.hpp"
#include "src/plan.hpp"
#include "src/stage_timer.hpp"

namespace cpnsa {

/// The forward that a SavedForward is of.
struct ForwardRecord {
  std::int64_t layer = 0;  ///< Layer::number of its layer; 0 until a forward has run to its end
  std::int64_t call = 0;   ///< Layer::calls at that forward, the same on every rank
  std::shared_ptr<const planning::BlockSchedule> schedule;
  bool spent = false;  ///< whether a backward has written where the forward saved
};

struct SavedForward::State : ForwardRecord {};

/// A planned halo's lists in the device's memory. Forward: pack -> exchange -> place. Backward: the way back.
struct HaloLists {
  HaloLists(Device& device, const planning::RankHalo& halo);

  DeviceList<RowRange> pack;     ///< own rows -> send buffer
  DeviceList<RowRange> place;    ///< receive buffer -> halo rows
  DeviceList<RowRange> own;      ///< own rows -> halo rows
  DeviceList<RowRange> unplace;  ///< halo rows -> receive buffer
  DeviceList<RowRange> unpack;   ///< send buffer -> own rows
  DeviceList<RowRange> back;     ///< halo rows -> own rows
  std::size_t device_bytes() const;
};

/// Host memory that this call's lists are copied to the device from; the event keeps the next call from overwriting
/// what is still being copied.
struct ListStaging {
  ListStaging(Device& device, std::size_t bytes) : memory(device, bytes), copied(device), waits(device) {}
  PinnedBuffer memory;
  OwnedEvent copied;
  OwnedStream waits;  ///< drains with `copied`, so that the communicator's wait, which has a deadline, serves for it
  bool in_use = false;
};

/// How one attention layer runs on one rank. Members in the order they are built from one another.
struct Layer {
  Layer(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
        const AttentionOptions& options);

  /// Runs `validate` here and agrees with the other ranks on the call: all go on, or all throw.
  void enter(const std::string& call, const std::function<void()>& validate);
  /// Runs a step; if it fails on this rank alone, releases the others.
  void guarded(Stream compute, const std::function<void()>& step);
  /// Waits on the host for all that was enqueued, as long as the communicator's deadline lets it.
  void wait_for_steps();
  /// Whether nothing enqueued runs any more; waits for it, if not for ever.
  bool drained() noexcept;
  /// Later work of `to` runs after the present end of `from`.
  void hand_over(Stream from, Stream to);

  /// Sends sends[i] of `send_base` and receives receives[i] into `receive_base`; items are `item_bytes` long.
  void exchange(Traffic traffic, const std::vector<planning::PeerRange>& sends, const void* send_base,
                const std::vector<planning::PeerRange>& receives, void* receive_base, std::size_t item_bytes);
  void count_received(Traffic traffic, std::int64_t bytes);
  /// Adds a pass's agreement to what was received, and all that the plan says it receives to what was predicted.
  void account(const std::array<std::int64_t, traffic_kinds>& predicted, std::int64_t predicted_control);

  /// Copies the schedule's table and lists to the device, and returns where the table is there. The staging's previous
  /// copies must be over: waits if not. Where no block travels everything is there already.
  const BlockLocation* upload(const planning::BlockSchedule& schedule, const ExchangeBuffers& buffers,
                              ListStaging& staging, Stream stream);
  /// Packs one round's blocks and exchanges them into `pool`, on the communication stream.
  void fetch(const planning::BlockSchedule& schedule, std::size_t round, const ExchangeBuffers& buffers, void* pool,
             const void* k, const void* v, Traffic traffic, Stage stage);
  /// Where a round's blocks are: one of two pools that take turns, or their place among those kept.
  void* pool_of(const planning::BlockSchedule& schedule, std::size_t round, const ExchangeBuffers& buffers,
                const SavedBuffers& kept) const;
  /// If options ask for it: each parameter gradient becomes the ranks' sum, by way of `work`. Returns bytes received.
  std::int64_t sum_parameters(const AttentionGradients& gradients, void* work, Stream compute);
  static std::int64_t next_number();
  std::size_t list_bytes() const;    ///< of one schedule at most: table and packed lists
  std::size_t demand_bytes() const;  ///< of one rank
  /// The round's part of ExchangeBuffers::packed.
  ListView<BlockSlot> packed_of(const planning::BlockSchedule& schedule, std::size_t round,
                                const ExchangeBuffers& buffers) const;

  /// Halo rows -> send buffer as tokens on the wire (keys, then values), and back.
  void rows_to_tokens(const ListView<RowRange>& ranges, const void* k, const void* v, void* tokens, std::size_t element,
                      Stream stream);
  void tokens_to_rows(const ListView<RowRange>& ranges, const void* tokens, void* k, void* v, std::size_t element,
                      Stream stream);
  void add_tokens_to_rows(const ListView<RowRange>& ranges, const void* tokens, void* k, void* v, Stream stream);
  void copy_rows(const ListView<RowRange>& ranges, const void* source, void* destination, std::int64_t width,
                 std::size_t element, Stream stream);
  void add_rows(const ListView<RowRange>& ranges, const void* source, void* destination, std::int64_t width,
                Stream stream);

  /// A stage's arguments with what every stage is told.
  template <class Arguments>
  Arguments stage(void* scratch) const {
    Arguments arguments{};
    arguments.config = &config;
    arguments.dtype = options.dtype;
    arguments.scratch = scratch;
    return arguments;
  }

  void validate_inputs(const AttentionInputs& inputs) const;
  void validate_forward(const AttentionInputs& inputs, const TensorView& out, const std::int32_t* selected,
                        const SavedForward* saved, const void* workspace) const;
  void validate_backward(const AttentionInputs& inputs, const TensorView& dout, const ForwardRecord& record,
                         const void* saved_memory, const AttentionGradients& gradients, const void* workspace) const;
  void validate_gradients(const AttentionInputs& inputs, const AttentionGradients& gradients) const;
  void check_used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const;
  void check(const TensorView& view, const std::string& name, DType dtype, const schema::Shape& shape) const;

  SavedBuffers saved_buffers(Arena& arena) const { return {arena, config, plan, sizes}; }
  ForwardBuffers forward_buffers(Arena& arena) const { return {arena, plan, sizes, scratch_bytes}; }
  BackwardBuffers backward_buffers(Arena& arena, const BranchBuffers& saved) const;

  Config config;
  Device& device;
  Communicator& communicator;
  AttentionOptions options;
  DType accumulate;     ///< accumulate_dtype(options.dtype)
  DType gradient_type;  ///< of dq, dk, dv, dgate
  DType parameter_gradient_type;
  planning::Plan plan;
  std::unique_ptr<SegmentSchedule> queries;
  LayerSizes sizes;
  std::size_t scratch_bytes = 0;
  std::size_t forward_bytes = 0;
  std::size_t backward_bytes = 0;
  std::size_t saved_bytes = 0;

  HaloLists summary_halo;
  HaloLists window_halo;
  DeviceList<SummaryRun> own_runs;
  DeviceList<SummaryRun> halo_runs;
  DeviceList<RowRange> own_to_gathered;
  DeviceList<RowRange> gathered_to_all;
  DeviceList<RowRange> all_to_gathered;
  DeviceList<RowRange> own_to_all;
  DeviceList<RowRange> one_row;                               ///< {0, 0, 1}: a whole buffer as one row
  std::shared_ptr<const planning::BlockSchedule> everything;  ///< the schedule of Exchange::gather
  DeviceList<BlockLocation> own_table;                        ///< its table where no block travels

  ListStaging forward_lists;
  ListStaging backward_lists;
  PinnedBuffer demand_host;  ///< [P, words], what the forward reads
  OwnedEvent demand_read;
  OwnedStream communication;
  OwnedStream beside;  ///< of computations that leave room on the card
  OwnedEvent handed_over;
  OwnedEvent summary_halo_arrived;
  OwnedEvent window_halo_arrived;
  OwnedEvent summaries_arrived;
  std::array<OwnedEvent, 2> fetched;  ///< of each pool; rounds alternate between them
  std::array<OwnedEvent, 2> returned;
  StageTimer timer;
  Statistics statistics;
  bool own_demand_pending = false;  ///< Exchange::gather: blocks_needed is counted when statistics are asked for
  std::int64_t calls = 0;
  std::uint64_t fingerprint = 0;  ///< of what all ranks were given alike: shows layers called in another order
  const std::int64_t number = next_number();  ///< of all layers of this process its own, from 1
};

struct Attention::Impl : Layer {
  using Layer::Layer;
};

/// Elements of all parameters of both compressors.
std::int64_t parameter_elements(const Config& config);
CompressorPointers pointers_of(const CompressorTensors& tensors);

/// Calls `visit` with every parameter gradient that is given, in a fixed order.
void for_each_parameter(const AttentionGradients& gradients, const std::function<void(const TensorView&)>& visit);
/// Parameter gradients of `dtype` in `memory`, one for each that is given.
AttentionGradients parameters_in(Arena& memory, const AttentionGradients& like, DType dtype);
/// Which parameter gradients are wanted, a bit each: ranks that sum them must want the same.
std::string given_parameters(const AttentionGradients& gradients);

}  // namespace cpnsa
