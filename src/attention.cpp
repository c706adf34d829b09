#include "cpnsa/attention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "cpnsa/log.hpp"
#include "cpnsa/step_record.hpp"
#include "src/layer/arguments.hpp"
#include "src/layer/fingerprint.hpp"
#include "src/layer/parameter_values.hpp"
#include "src/layer/parameters.hpp"
#include "src/steps/backward.hpp"
#include "src/steps/forward.hpp"
#include "src/wire/block_requests.hpp"

namespace cpnsa {
namespace {

DeviceFacts facts_of(Device& device, const Config& config, const AttentionOptions& options, const planning::Plan& plan,
                     const SegmentSchedule& queries) {
  return {device.scratch_bytes(problem_size(config, options, plan)),
          device.combines_selected(config, options.dtype, queries)};
}

std::int64_t next_number() {
  static std::atomic<std::int64_t> given{0};
  return ++given;
}

}  // namespace

/// The forward that a SavedForward is of.
struct SavedForward::State {
  std::int64_t layer = 0;          ///< Attention::Impl::number of its layer; 0 until a forward has run to its end
  std::int64_t callers_layer = 0;  ///< AttentionInputs::layer of that forward
  std::int64_t call = 0;           ///< Attention::Impl::calls at that forward, the same on every rank
  std::shared_ptr<const planning::BlockSchedule> schedule;
  bool spent = false;  ///< whether a backward has written to the saved memory
};

/// Members in the order they are built from one another.
struct Attention::Impl {
  Impl(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
       const AttentionOptions& options)
      : plan(config, partition, communicator.rank(), options),
        lists(device, config, plan, options.exchange),
        layer(config, options, plan, facts_of(device, config, options, plan, *lists.queries)),
        wire(device, communicator, options.timing),
        forward_rounds(device, layer.list_bytes()),
        backward_rounds(device, options.backward ? layer.list_bytes() : 0),
        requests(device, layer) {}

  /// Runs `validate` on this rank and agrees with the other ranks on the call: all go on, or all throw.
  void enter(const std::string& call, const std::function<void()>& validate) {
    wire.device.activate();
    agree_on(wire.communicator, fmt::format("layer={} call={} {}", layer_number, calls + 1, call), validate);
    ++calls;  // of those that all ranks made: one that some made of another layer leaves none out of step
  }

  /// In the first forward of a layer: makes sure that all ranks hold the same parameters. Returns the number of
  /// agreements that this took.
  int compare_parameters(const AttentionInputs& inputs, Stream stream) {
    Communicator& communicator = wire.communicator;
    if (!layer.options.compare_parameters || communicator.size() == 1 || compared_layers.contains(inputs.layer))
      return 0;
    std::string values;
    agree_on(communicator, "parameters", [&] { values = parameter_values(inputs, wire.device, communicator, stream); });
    agree(communicator, "parameters" + values);
    compared_layers.insert(inputs.layer);
    return 2;
  }

  /// The schedule whose blocks a step counts as moved: with Exchange::pull the host learns of them later.
  const planning::BlockSchedule& counted(const planning::BlockSchedule& schedule) const {
    static const planning::BlockSchedule none;
    return layer.pulls() ? none : schedule;
  }
  /// Adds the blocks that were pulled, by the needs that are on the host once the steps are over.
  void count_pulled(Statistics& statistics) const {
    if (!layer.pulls() || !plan.blocks.any_reachable()) return;
    const auto add = [&](const Wire::ByTraffic& bytes, std::initializer_list<Traffic> kinds) {
      for (const Traffic kind : kinds) {
        at(statistics.bytes_received, kind) += at(bytes, kind);
        at(statistics.bytes_predicted, kind) += at(bytes, kind);
      }
    };
    const planning::BlockSchedule forward = requests.pulled_forward(layer);
    statistics.blocks_fetched = forward.received;
    add(plan.bytes_forward(forward), {Traffic::blocks});
    if (backward_pulled)
      add(plan.bytes_backward(requests.pulled_backward(layer)), {Traffic::refetched_blocks, Traffic::block_gradients});
  }

  void check_saved(const SavedForward::State& saved, const AttentionInputs& inputs) const {
    if (!layer.options.backward) throw ArgumentError("backward: found options.backward = false, expected true");
    if (saved.layer == 0) throw ArgumentError("saved: found none, expected that of a forward");
    if (saved.layer != number)
      throw ArgumentError("saved: found that of another layer's forward, expected this layer's");
    if (saved.spent)
      throw ArgumentError("saved: found that of a forward whose backward has run, expected another (reuse_saved)");
    if (saved.callers_layer != inputs.layer)
      throw ArgumentError(
          fmt::format("layer: found {}, expected {}, that of the forward", inputs.layer, saved.callers_layer));
  }

  planning::Plan plan;
  LayerLists lists;
  LayerPlan layer;
  Wire wire;
  RoundResources forward_rounds;
  RoundResources backward_rounds;
  BlockRequests requests;

  BlockAgreement blocks;                   ///< of the last forward
  bool needs_uncounted = false;            ///< whether blocks.blocks_needed is counted when statistics are asked for
  bool backward_pulled = false;            ///< whether the last backward follows the last forward and pulled blocks
  std::int64_t layer_number = 0;           ///< on the communicator, the same on every rank
  std::set<std::int64_t> compared_layers;  ///< AttentionInputs::layer of those whose parameters were compared
  std::int64_t calls = 0;
  const std::int64_t number = next_number();  ///< of this layer among all of this process, from 1
};

namespace {

// Never freed, yet within reach: no leak to those who look for leaks.
template <class Layer>
void leave_behind(std::unique_ptr<Layer> layer) noexcept {
  static std::mutex mutex;
  static auto& layers = *new std::vector<Layer*>;
  const std::lock_guard lock(mutex);
  layers.push_back(layer.release());
}

}  // namespace

Attention::Attention(const Config& given_config, const Partition& partition, Device& device, Communicator& communicator,
                     const AttentionOptions& options) {
  device.activate();
  const Config config = given_config.with_defaults();
  const FlightRecorder::Call call(communicator.recorder(), "plan", communicator.layers() + 1);
  const std::string given = fingerprint(config, partition, options);
  agree_on(communicator, given, [&] { validate_layer(config, partition, device, communicator, options); });
  const std::int64_t number = communicator.number_layer();
  // A rank without memory for its lists tells the others, who would wait for it in their first step.
  agree_on(communicator, "plan",
           [&] { impl_ = std::make_unique<Impl>(config, partition, device, communicator, options); });
  impl_->layer_number = number;
  if (LogLevel::info >= log_level())
    log(LogLevel::info,
        fmt::format("rank {} of {}: layer {} on {} over {}: {} rows, workspace {} bytes, saved {} bytes; {}",
                    communicator.rank(), communicator.size(), number, device.name(), communicator.name(), rows(),
                    workspace_bytes(), saved_bytes(), config.describe()));
}

Attention::~Attention() {
  // Lists and events must not be freed under work that still reads them. Work that waits for ranks that never come is
  // left to itself with what it reads, for freeing that would wait as well.
  if (impl_ && !impl_->wire.drained()) leave_behind(std::move(impl_));
}

Attention::Attention(Attention&&) noexcept = default;

std::int64_t Attention::rows() const {
  return impl_->plan.rows;
}

std::size_t Attention::workspace_bytes() const {
  return std::max(impl_->layer.forward_bytes, impl_->layer.backward_bytes);
}

std::size_t Attention::saved_bytes() const {
  return impl_->layer.saved_bytes;
}

void Attention::forward(const AttentionInputs& inputs, const TensorView& out, std::int32_t* selected,
                        SavedForward* saved, void* workspace, Stream stream, const BranchTensors& log_sum_exp) {
  Impl& self = *impl_;
  const ForwardArguments given{inputs, out, selected, saved, workspace, log_sum_exp};
  const FlightRecorder::Call call(self.wire.communicator.recorder(), "forward", self.layer_number, self.calls + 1);
  self.enter(fmt::format("forward callers_layer={} rotates={}", inputs.layer, inputs.summary_rotation.cos.given), [&] {
    self.wire.device.check_stream(stream);
    validate_forward(self.layer, self.wire.device, given);
    validate_selection(self.layer, self.wire.device, self.wire.communicator, inputs.selected, stream);
  });
  const int agreements = 1 + self.compare_parameters(inputs, stream);
  self.wire.run(stream, [&] {
    self.wire.reset(stream);
    self.blocks = {};
    self.needs_uncounted = self.backward_pulled = false;
    if (saved) *saved->state_ = {};
    const ForwardResult result =
        run_forward(self.layer, self.lists, self.wire, self.forward_rounds, self.requests, given, stream);
    self.blocks = result.blocks;
    self.needs_uncounted = self.plan.blocks.any_reachable() && !self.layer.reads_needs();
    if (saved) *saved->state_ = {self.number, inputs.layer, self.calls, result.blocks.schedule};
    auto predicted = self.plan.bytes_forward(self.counted(*result.blocks.schedule));
    at(predicted, Traffic::control) += result.request_bytes;
    self.wire.account(predicted, agreements);
  });
}

void Attention::backward(const AttentionInputs& inputs, const TensorView& dout, SavedForward& saved,
                         const AttentionGradients& gradients, void* workspace, Stream stream) {
  Impl& self = *impl_;
  const BackwardArguments given{inputs, dout, saved.memory, gradients, workspace};
  const FlightRecorder::Call recorded(self.wire.communicator.recorder(), "backward", self.layer_number, self.calls + 1);
  // All ranks must go back through the same forward, because each forward has its own schedule of blocks.
  const std::string call = fmt::format("backward callers_layer={} of_call={} parameters={}", inputs.layer,
                                       saved.state_->call, given_parameters(gradients));
  self.enter(call, [&] {
    self.wire.device.check_stream(stream);
    self.check_saved(*saved.state_, inputs);
    validate_backward(self.layer, self.wire.device, given);
  });
  self.wire.run(stream, [&] {
    saved.state_->spent = self.layer.sizes.reuses_branches && self.layer.sizes.saves_branches;
    const planning::BlockSchedule& schedule = *saved.state_->schedule;
    const BackwardResult result =
        run_backward(self.layer, self.lists, self.wire, self.backward_rounds, self.requests, schedule, given, stream);
    self.backward_pulled = self.layer.pulls();
    auto predicted = self.plan.bytes_backward(self.counted(schedule));
    at(predicted, Traffic::parameter_gradients) += result.parameter_bytes;
    self.wire.account(predicted, 1);
  });
}

void Attention::refuse(std::string_view problem) noexcept {
  const FlightRecorder::Call call(impl_->wire.communicator.recorder(), "refuse", impl_->layer_number, impl_->calls + 1);
  cpnsa::refuse(impl_->wire.communicator, problem);
}

Statistics Attention::statistics() {
  Impl& self = *impl_;
  self.wire.wait_for_steps();
  if (std::exchange(self.needs_uncounted, false)) self.blocks.blocks_needed = self.requests.count_own(self.layer);
  Statistics statistics;
  statistics.exchange = self.blocks.exchange;
  statistics.bytes_received = self.wire.received();
  statistics.bytes_predicted = self.wire.predicted();
  statistics.blocks_needed = self.blocks.blocks_needed;
  statistics.blocks_fetched = self.blocks.schedule ? self.blocks.schedule->received : 0;
  if (self.blocks.schedule) self.count_pulled(statistics);
  statistics.workspace_bytes =
      static_cast<std::int64_t>(workspace_bytes() + self.layer.saved_bytes + self.lists.device_bytes());
  if (self.layer.options.timing) statistics.seconds = self.wire.seconds();
  return statistics;
}

StepRecord Attention::record() {
  const Communicator& communicator = impl_->wire.communicator;
  StepRecord record{communicator.rank(), communicator.size(), impl_->layer_number, rows(), statistics(), {}};
  if (impl_->layer.options.timing) record.spans = impl_->wire.spans();
  return record;
}

SavedForward::SavedForward() : state_(std::make_unique<State>()) {}
SavedForward::~SavedForward() = default;
SavedForward::SavedForward(SavedForward&&) noexcept = default;
SavedForward& SavedForward::operator=(SavedForward&&) noexcept = default;

}  // namespace cpnsa
