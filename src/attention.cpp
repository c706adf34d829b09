#include "cpnsa/attention.hpp"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"
#include "src/attention_impl.hpp"
#include "src/hash.hpp"

namespace cpnsa {
namespace {

/// What every rank must have been given alike; words, so that agree() can show the one that differs.
std::string fingerprint(const Config& config, const Partition& partition, const AttentionOptions& options) {
  std::uint64_t documents = 0, ownership = 0;
  const auto mix = [](std::uint64_t& hash, std::int64_t value) {
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  };
  for (const std::int64_t bound : partition.cu_seqlens()) mix(documents, bound);
  for (int rank = 0; rank < partition.ranks(); ++rank)
    for (const TokenRange& range : partition.ranges(rank)) {
      mix(ownership, rank);
      mix(ownership, range.begin);
      mix(ownership, range.end);
    }
  return fmt::format(
      "{} tokens={} documents={} cu_seqlens_hash={:x} partition_hash={:x} dtype={} exchange={} backward={} "
      "refetch_blocks={} recompute_branches={} reuse_saved={} gradient_dtype={} "
      "parameter_gradient_dtype={} sum_parameter_gradients={}",
      config.describe(), partition.tokens(), partition.cu_seqlens().size() - 1, documents, ownership,
      name_of(options.dtype), name_of(options.exchange), options.backward, options.refetch_blocks,
      options.recompute_branches, options.reuse_saved, name_of(options.gradient_dtype.value_or(options.dtype)),
      name_of(options.parameter_gradient_dtype.value_or(accumulate_dtype(options.dtype))),
      options.sum_parameter_gradients);
}

void validate_plan(const Config& config, const Partition& partition, Device& device, const Communicator& communicator,
                   const AttentionOptions& options) {
  config.validate();
  device.check_supported(config, options.dtype);
  communicator.check_device(device);
  if (partition.ranks() != communicator.size())
    throw ArgumentError(fmt::format("partition: found {} ranks, expected {}, the communicator's size",
                                    partition.ranks(), communicator.size()));
  if (partition.select_block() != config.select_block)
    throw ArgumentError(fmt::format("partition: found select_block {}, expected {}, the configuration's",
                                    partition.select_block(), config.select_block));
  const auto check_type = [&](const char* name, std::optional<DType> found) {
    if (found && *found != options.dtype && *found != accumulate_dtype(options.dtype))
      throw ArgumentError(fmt::format("{}: found {}, expected {} or {}", name, name_of(*found), name_of(options.dtype),
                                      name_of(accumulate_dtype(options.dtype))));
  };
  check_type("gradient_dtype", options.gradient_dtype);
  check_type("parameter_gradient_dtype", options.parameter_gradient_dtype);
  // Block locations and slots are 32-bit, which bounds what one rank may own or a pool may hold.
  constexpr std::int64_t most_rows = (std::int64_t{1} << 31) - 1;
  if (partition.tokens() > most_rows)
    throw ArgumentError(fmt::format("tokens: found {}, expected at most {}", partition.tokens(), most_rows));
}

std::vector<RowRange> reversed(std::vector<RowRange> ranges) {
  for (RowRange& range : ranges) std::swap(range.source, range.destination);
  return ranges;
}

ProblemSize problem_size(const Config& config, const planning::Plan& plan, const AttentionOptions& options) {
  return {&config,
          options.dtype,
          plan.rows,
          plan.layout.own_summaries[static_cast<std::size_t>(plan.rank)],
          plan.layout.summaries,
          plan.layout.blocks,
          options.backward};
}

}  // namespace

std::int64_t parameter_elements(const Config& config) {
  std::int64_t elements = 0;
  for (const schema::Tensor& tensor : schema::tensors) {
    if (tensor.per_token || !tensor.used_by(config.compressor)) continue;
    std::int64_t product = 1;
    for (const std::int64_t size : schema::sizes_of(tensor.shape, config, 0)) product *= size;
    elements += product;
  }
  return elements;
}

HaloLists::HaloLists(Device& device, const planning::RankHalo& halo)
    : pack(device, halo.packed),
      place(device, halo.received),
      own(device, halo.own),
      unplace(device, reversed(halo.received)),
      unpack(device, reversed(halo.packed)),
      back(device, reversed(halo.own)) {}

std::size_t HaloLists::device_bytes() const {
  std::size_t bytes = 0;
  for (const auto* list : {&pack, &place, &own, &unplace, &unpack, &back}) bytes += list->device_bytes();
  return bytes;
}

Layer::Layer(const Config& config_, const Partition& partition, Device& device_, Communicator& communicator_,
             const AttentionOptions& options_)
    : config(config_),
      device(device_),
      communicator(communicator_),
      options(options_),
      accumulate(accumulate_dtype(options.dtype)),
      gradient_type(options.gradient_dtype.value_or(options.dtype)),
      parameter_gradient_type(options.parameter_gradient_dtype.value_or(accumulate)),
      plan(config, partition, communicator.rank(), options),
      queries(device.schedule(plan.segments, config)),
      sizes(config, plan, options, device.combines_selected(config, options.dtype, *queries)),
      scratch_bytes(device.scratch_bytes(problem_size(config, plan, options))),
      summary_halo(device, plan.summary_halo),
      window_halo(device, plan.window_halo),
      own_runs(device, plan.own_runs),
      halo_runs(device, plan.halo_runs),
      own_to_gathered(device, plan.own_to_gathered),
      gathered_to_all(device, plan.gathered_to_all),
      all_to_gathered(device, plan.all_to_gathered),
      own_to_all(device, plan.own_to_all),
      one_row(device, {{0, 0, 1}}),
      everything(std::make_shared<planning::BlockSchedule>(plan.blocks.gather())),
      own_table(device, plan.blocks.any_reachable() ? std::vector<BlockLocation>{} : everything->table),
      forward_lists(device, list_bytes()),
      backward_lists(device, options.backward ? list_bytes() : 0),
      demand_host(device, demand_bytes() * static_cast<std::size_t>(communicator.size())),
      demand_read(device),
      communication(device),
      beside(device),
      handed_over(device),
      summary_halo_arrived(device),
      window_halo_arrived(device),
      summaries_arrived(device),
      fetched{OwnedEvent(device), OwnedEvent(device)},
      returned{OwnedEvent(device), OwnedEvent(device)},
      timer(device, options.timing) {
  Arena saved;
  saved_buffers(saved);
  Arena forward;
  if (!options.backward) saved_buffers(forward);
  forward_buffers(forward);
  saved_bytes = options.backward ? saved.used() : 0;
  forward_bytes = forward.used();
  if (options.backward) {
    Arena backward;
    backward_buffers(backward, {});
    backward_bytes = backward.used();
  }
}

std::int64_t Layer::next_number() {
  static std::atomic<std::int64_t> given{0};
  return ++given;
}

std::size_t Layer::list_bytes() const {
  return static_cast<std::size_t>(plan.layout.blocks * config.num_kv_heads) * sizeof(BlockLocation) +
         static_cast<std::size_t>(plan.blocks.send_slots() * config.num_kv_heads) * sizeof(BlockSlot);
}

std::size_t Layer::demand_bytes() const {
  return static_cast<std::size_t>(planning::DemandMatrix::words_of(plan.layout.blocks, config.num_kv_heads)) *
         sizeof(std::uint32_t);
}

BackwardBuffers Layer::backward_buffers(Arena& arena, const BranchBuffers& saved) const {
  const bool sums = options.sum_parameter_gradients && communicator.size() > 1;
  const std::int64_t parameters = parameter_elements(config);
  return {arena,
          saved,
          plan,
          sizes,
          config,
          gradient_type != accumulate,
          parameter_gradient_type != accumulate ? parameters : 0,
          sums ? parameters : 0,
          scratch_bytes};
}

void Layer::enter(const std::string& call, const std::function<void()>& validate) {
  device.activate();
  agree_on(communicator, fmt::format("layer={:x} call={} {}", fingerprint, calls + 1, call), validate);
  ++calls;  // of those that all ranks made: one that some made of another layer leaves none out of step
}

void Layer::guarded(Stream compute, const std::function<void()>& step) {
  try {
    step();
    hand_over(compute, communication.get());  // whose end is now that of the step
  } catch (const std::exception& error) {
    communicator.abort(fmt::format("rank {}: {}", communicator.rank(), error.what()));
    try {
      hand_over(beside.get(), communication.get());
      hand_over(compute, communication.get());
    } catch (const std::exception&) {  // the device has failed: nothing runs on it
    }
    throw;
  }
}

void Layer::wait_for_steps() {
  device.activate();
  communicator.wait(device, communication.get());
}

bool Layer::drained() noexcept {
  try {
    wait_for_steps();
    return true;
  } catch (const std::exception&) {  // a communicator or a device that failed
  }
  try {
    constexpr std::chrono::seconds parting{2};  // an aborted communicator's streams drain at once
    const auto end = std::chrono::steady_clock::now() + parting;
    device.record(handed_over.get(), communication.get());
    while (!device.done(handed_over.get())) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const std::exception&) {  // a failed device has nothing left that runs
  }
  return true;
}

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
  const std::string given = fingerprint(config, partition, options);
  agree_on(communicator, given, [&] { validate_plan(config, partition, device, communicator, options); });
  // A rank without memory for its lists tells the others, who would wait for it in their first step.
  agree_on(communicator, "plan",
           [&] { impl_ = std::make_unique<Impl>(config, partition, device, communicator, options); });
  impl_->fingerprint = hash_of(given);
}

Attention::~Attention() {
  // Lists and events must not be freed under work that still reads them. Work that waits for ranks that never come is
  // left to itself with what it reads, for freeing that would wait as well.
  if (impl_ && !impl_->drained()) leave_behind(std::move(impl_));
}

Attention::Attention(Attention&&) noexcept = default;

std::int64_t Attention::rows() const {
  return impl_->plan.rows;
}

std::size_t Attention::workspace_bytes() const {
  return std::max(impl_->forward_bytes, impl_->backward_bytes);
}

std::size_t Attention::saved_bytes() const {
  return impl_->saved_bytes;
}

void Attention::refuse(std::string_view problem) noexcept {
  cpnsa::refuse(impl_->communicator, problem);
}

Statistics Attention::statistics() {
  Impl& self = *impl_;
  self.wait_for_steps();
  if (self.own_demand_pending) {
    planning::DemandMatrix demand(self.communicator.size(), self.plan.layout.blocks, self.config.num_kv_heads);
    const auto* words = static_cast<const std::uint32_t*>(self.demand_host.data());
    const std::size_t count = self.demand_bytes() / sizeof(std::uint32_t);
    std::copy_n(words, count, demand.words().begin() + static_cast<std::ptrdiff_t>(count) * self.plan.rank);
    self.statistics.blocks_needed = self.plan.blocks.needed(demand, self.plan.rank);
    self.own_demand_pending = false;
  }
  if (self.options.timing) self.statistics.seconds = self.timer.seconds();
  std::size_t lists = self.summary_halo.device_bytes() + self.window_halo.device_bytes();
  for (const auto* list : {&self.own_to_gathered, &self.gathered_to_all, &self.all_to_gathered, &self.own_to_all})
    lists += list->device_bytes();
  lists += self.own_runs.device_bytes() + self.halo_runs.device_bytes() + self.own_table.device_bytes();
  self.statistics.workspace_bytes = static_cast<std::int64_t>(workspace_bytes() + self.saved_bytes + lists);
  return self.statistics;
}

SavedForward::SavedForward() : state_(std::make_unique<State>()) {}
SavedForward::~SavedForward() = default;
SavedForward::SavedForward(SavedForward&&) noexcept = default;
SavedForward& SavedForward::operator=(SavedForward&&) noexcept = default;

}  // namespace cpnsa
