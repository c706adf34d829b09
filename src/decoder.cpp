#include "cpnsa/decoder.hpp"

#include <fmt/format.h>

#include <exception>
#include <set>
#include <string>
#include <utility>

#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "src/inference/decode_arguments.hpp"
#include "src/inference/decode_plan.hpp"
#include "src/inference/decode_step.hpp"
#include "src/layer/parameter_values.hpp"

namespace cpnsa {
namespace {

std::string fingerprint(const DecodePlan& plan) {
  const KvCacheOptions& cache = plan.layout.options();
  return fmt::format(
      "decoder {} dtype={} page={} summary_page={} shared_branches={} replicate_summaries={} max_sequences={} "
      "max_tokens={} max_length={} checked={} compare_parameters={}",
      plan.config.describe(), name_of(cache.dtype), cache.page, cache.summary_page, cache.shared_branches,
      cache.replicate_summaries, plan.options.max_sequences, plan.options.max_tokens, plan.options.max_length,
      plan.options.checked, plan.options.compare_parameters);
}

}  // namespace

struct Decoder::Impl {
  Impl(const Config& config, const DecoderOptions& options, Device& device_, Communicator& communicator_)
      : device(device_), communicator(communicator_), plan(config, options, communicator.rank(), communicator.size()) {
    if (plan.config.branches != BranchSet::all)
      throw UnsupportedError(
          fmt::format("branches: found {}, expected all, which the decoder has", name_of(plan.config.branches)));
    device.check_supported(plan.config, options.cache.dtype);
    device.check_decode_supported(plan.config, options.cache.dtype, plan.layout.page());
    communicator.check_device(device);
    scratch_bytes = device.decode_scratch_bytes(plan.size());
    schedule_bytes = device.decode_schedule_bytes(plan.size());
    Arena arena;
    const DecodeBuffers buffers(arena, plan, scratch_bytes);
    workspace_bytes = arena.used();
  }

  bool checked() const { return plan.options.checked; }

  /// Runs `validate`. In a checked decoder all ranks agree on the call, and all go on or all throw. In one that is not,
  /// a rank that cannot go on releases the others, which do not ask.
  void enter(const std::string& call, const std::function<void()>& validate) {
    device.activate();
    const auto check = [&] {
      if (failed)
        throw ArgumentError("decoder: found one whose step has failed, expected a new decoder after a failure");
      validate();
    };
    ++calls;
    if (checked()) {
      const std::int64_t agreement = static_cast<std::int64_t>(agreement_bytes) * (plan.ranks - 1);
      agree_on(communicator, fmt::format("decoder={} call={} {}", number, calls, call), check);
      statistics.bytes_received[static_cast<std::size_t>(DecodeTraffic::control)] += agreement;
      return;
    }
    guard([&] { check(); });
  }

  /// In the first step of a layer: makes sure that all ranks hold the same parameters.
  void compare_parameters(const AttentionInputs& inputs, Stream stream) {
    if (!plan.options.compare_parameters || plan.ranks == 1 || compared_layers.contains(inputs.layer)) return;
    std::string values;
    agree_on(communicator, fmt::format("decoder={} call={} callers_layer={}", number, calls, inputs.layer),
             [&] { values = parameter_values(inputs, device, communicator, stream); });
    agree(communicator, "parameters" + values);
    statistics.bytes_received[static_cast<std::size_t>(DecodeTraffic::control)] +=
        2 * static_cast<std::int64_t>(agreement_bytes) * (plan.ranks - 1);
    compared_layers.insert(inputs.layer);
  }

  /// Runs what the other ranks take part in; if it fails on this rank, releases them.
  template <class Function>
  void guard(Function&& function) {
    try {
      function();
    } catch (const std::exception& error) {
      if (plan.ranks > 1) communicator.abort(error.what());
      throw;
    } catch (...) {  // of a device or of callbacks
      if (plan.ranks > 1) communicator.abort("an exception that is no std::exception");
      throw;
    }
  }

  Device& device;
  Communicator& communicator;
  DecodePlan plan;
  std::size_t scratch_bytes = 0;
  std::size_t schedule_bytes = 0;
  std::size_t workspace_bytes = 0;
  std::int64_t number = 0;  ///< on the communicator, among its layers, the same on every rank
  std::int64_t calls = 0;
  std::set<std::int64_t> compared_layers;  ///< AttentionInputs::layer of those whose parameters were compared
  bool failed = false;                     ///< whether work of a step was enqueued in part

  DecodeBatch batch;  ///< that was prepared last
  const void* schedule = nullptr;
  DecodeStatistics statistics;
};

Decoder::Decoder(const Config& config, const DecoderOptions& options, Device& device, Communicator& communicator) {
  device.activate();
  const FlightRecorder::Call call(communicator.recorder(), "plan", communicator.layers() + 1);
  agree_on(communicator, "decoder", [&] { impl_ = std::make_unique<Impl>(config, options, device, communicator); });
  agree_on(communicator, fingerprint(impl_->plan), [] {});
  impl_->number = communicator.number_layer();
}

Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

const KvCacheLayout& Decoder::layout() const {
  return impl_->plan.layout;
}

std::size_t Decoder::workspace_bytes() const {
  return impl_->workspace_bytes;
}

std::size_t Decoder::schedule_bytes() const {
  return impl_->schedule_bytes;
}

int Decoder::messages_per_step() const {
  return impl_->plan.messages();
}

std::array<std::int64_t, decode_traffic_kinds> Decoder::bytes_per_step(std::int64_t tokens) const {
  return impl_->plan.received_bytes(tokens);
}

void Decoder::prepare(const DecodeBatch& batch, void* schedule, Stream stream) {
  Impl& self = *impl_;
  const FlightRecorder::Call call(self.communicator.recorder(), "prepare", self.number, self.calls + 1);
  std::string description;
  self.enter("prepare", [&] {
    self.device.check_stream(stream);
    validate_batch(self.plan, self.device, batch, schedule, self.schedule_bytes);
    if (self.checked()) description = read_batch(self.plan, self.device, self.communicator, batch, stream);
  });
  if (self.checked() && self.plan.ranks > 1) agree(self.communicator, description);
  self.schedule = nullptr;  // none, if this fails
  self.guard([&] {
    PrepareDecode prepare{};
    prepare.config = &self.plan.config;
    prepare.dtype = self.plan.options.cache.dtype;
    prepare.sequences = batch.sequences;
    prepare.tokens = batch.tokens;
    prepare.max_length = self.plan.options.max_length;
    prepare.num_slots = batch.num_slots;
    prepare.slots = batch.slots;
    prepare.lengths = batch.lengths;
    prepare.cu_q = batch.cu_q;
    prepare.schedule = schedule;
    self.device.run(prepare, stream);
  });
  self.batch = batch;
  self.schedule = schedule;
}

void Decoder::step(const AttentionInputs& inputs, const KvCache& cache, const DecodeOutputs& outputs, void* workspace,
                   Stream stream) {
  Impl& self = *impl_;
  const FlightRecorder::Call call(self.communicator.recorder(), "step", self.number, self.calls + 1);
  const DecodeArguments given{self.batch, self.schedule, inputs, cache, outputs, workspace};
  self.enter(fmt::format("step callers_layer={}", inputs.layer), [&] {
    self.device.check_stream(stream);
    if (!self.schedule) throw ArgumentError("step: found no batch, expected prepare() before it");
    validate_step(self.plan, self.device, given, self.workspace_bytes);
  });
  ++self.statistics.steps;
  if (self.batch.tokens == 0) return;
  self.failed = true;  // until all is enqueued
  try {
    self.compare_parameters(inputs, stream);
  } catch (const MismatchError&) {  // all ranks threw it, and nothing is enqueued
    self.failed = false;
    throw;
  }
  self.guard([&] {
    run_decode(self.plan, self.device, self.communicator, self.scratch_bytes, given, self.statistics, stream);
  });
  self.failed = false;
}

void Decoder::refuse(std::string_view problem) noexcept {
  Impl& self = *impl_;
  if (self.checked()) {
    cpnsa::refuse(self.communicator, problem);
  } else if (self.plan.ranks > 1) {
    self.communicator.abort(problem);
  }
}

const DecodeStatistics& Decoder::statistics() const {
  return impl_->statistics;
}

}  // namespace cpnsa
