#include "cpnsa/forecast.hpp"

#include <algorithm>
#include <set>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "src/forecast/demand.hpp"
#include "src/forecast/memory.hpp"
#include "src/forecast/time.hpp"
#include "src/forecast/work.hpp"
#include "src/layer/layer_lists.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {
namespace {

/// Ranks that are forecast: the first, the last, and others at equal distances.
std::vector<int> chosen_ranks(int ranks, int limit) {
  std::set<int> chosen;
  const int count = std::clamp(limit, 1, ranks);
  for (int i = 0; i < count; ++i)
    chosen.insert(count == 1 ? ranks - 1 : static_cast<int>(static_cast<std::int64_t>(i) * (ranks - 1) / (count - 1)));
  return {chosen.begin(), chosen.end()};
}

/// Bytes that a GPU's compressor takes for a chunk of summaries: its inputs and hidden layers, and their gradients.
std::int64_t compressor_scratch(const ProblemSize& size, std::int64_t dim, std::int64_t hidden_width) {
  constexpr std::int64_t small_chunk = 512, large_chunk = 1024, sums = 4, location = 16;
  const Config& config = *size.config;
  const auto element = static_cast<std::int64_t>(size_of(size.dtype));
  const std::int64_t hidden = config.compressor == Compressor::mlp ? hidden_width : 0;
  const std::int64_t depth = config.compressor == Compressor::mean ? 0 : config.compress_block * dim;
  const std::int64_t per_row = size.backward
                                   ? depth * (element + sums) + 2 * hidden * (element + sums) + dim * (element + sums)
                                   : depth * element + hidden * (element + sums) + dim * sums;
  const std::int64_t chunk = size.own_summaries <= small_chunk ? small_chunk : large_chunk;
  return config.num_kv_heads * chunk * per_row + location * size.own_summaries;
}

/// Scratch memory of a GPU's ops: the compressor's, or that of sorting the choices of the backward's queries, which
/// takes four words per choice.
DeviceFacts estimated_gpu(const ProblemSize& size) {
  const Config& config = *size.config;
  const std::int64_t choices = size.rows * config.num_kv_heads * config.select_count;
  const std::int64_t pairs = size.blocks * config.num_kv_heads;
  return {to_size(std::max({size.backward ? 16 * choices + 24 * pairs + choices / 32 : 0,
                            compressor_scratch(size, config.head_dim_qk, config.compress_hidden_k),
                            compressor_scratch(size, config.head_dim_v, config.compress_hidden_v)})),
          true};
}

DeviceFacts facts_of(const ForecastOptions& options, const Config& config, const ProblemSize& size,
                     const planning::Plan& plan) {
  if (!options.device) return estimated_gpu(size);
  const auto queries = options.device->schedule(plan.segments, config);
  return {options.device->scratch_bytes(size),
          options.device->combines_selected(config, options.attention.dtype, *queries)};
}

void check(const Config& config, const Partition& partition, const ForecastOptions& options) {
  config.validate();
  if (partition.select_block() != config.select_block)
    throw ArgumentError("partition: found another select_block than the configuration's, expected the same");
  if (options.device) options.device->check_supported(config, options.attention.dtype);
}

}  // namespace

LayerForecast forecast(const Config& given, const Partition& partition, const ForecastOptions& options,
                       const ComputeModel& compute, const NetworkModel& network) {
  const Config config = given.with_defaults();
  check(config, partition, options);
  const forecasts::TimeModel time(compute, network);
  const std::unique_ptr<Device> host = cpu::make_device();
  Device& lists_device = options.device ? *options.device : *host;

  LayerForecast result;
  result.ranks = partition.ranks();
  result.scratch_estimated = !options.device;
  planning::NeedMatrix needs;
  for (const int rank : chosen_ranks(partition.ranks(), options.max_ranks)) {
    const planning::Plan plan(config, partition, rank, options.attention);
    if (result.of_ranks.empty()) {
      needs = forecasts::sample_needs(config, plan.layout, options.picks, options.seed);
      result.exchange = options.attention.exchange;
      if (!plan.blocks.any_reachable())
        result.exchange = Exchange::fetch;
      else if (result.exchange == Exchange::automatic)
        result.exchange = plan.blocks.choose(needs);
    }
    const LayerPlan layer(config, options.attention, plan,
                          facts_of(options, config, problem_size(config, options.attention, plan), plan));
    const planning::BlockSchedule schedule = result.exchange == Exchange::gather ? plan.blocks.gather()
                                             : result.exchange == Exchange::pull ? plan.blocks.pull(needs)
                                                                                 : plan.blocks.fetch(needs);

    RankForecast& of_rank = result.of_ranks.emplace_back();
    of_rank.rank = rank;
    of_rank.rows = plan.rows;
    forecasts::add_memory(layer, of_rank);
    of_rank.list_bytes = LayerLists(lists_device, config, plan, options.attention.exchange).device_bytes();
    of_rank.bytes_received = plan.bytes_forward(schedule);
    if (options.attention.backward) {
      const auto backward = plan.bytes_backward(schedule);
      for (std::size_t i = 0; i < backward.size(); ++i) of_rank.bytes_received[i] += backward[i];
    }
    of_rank.blocks_needed = plan.blocks.needed(needs, rank);
    of_rank.blocks_fetched = schedule.received;
    time.add_times(options.attention, plan, schedule,
                   forecasts::work_of(config, plan.segments, at(plan.layout.own_summaries, rank)), of_rank);

    result.max_layer_bytes = std::max(result.max_layer_bytes, of_rank.layer_bytes());
    result.max_saved_bytes = std::max(result.max_saved_bytes, of_rank.saved_bytes);
    result.max_workspace_bytes = std::max(result.max_workspace_bytes, of_rank.workspace_bytes);
    const double seconds = of_rank.forward_seconds + of_rank.backward_seconds;
    if (seconds < result.forward_seconds + result.backward_seconds) continue;
    result.forward_seconds = of_rank.forward_seconds;
    result.backward_seconds = of_rank.backward_seconds;
    result.compute_seconds = 0;
    for (const WorkKind kind : enum_values<WorkKind>)
      result.compute_seconds += at(of_rank.forward_compute, kind) + at(of_rank.backward_compute, kind);
    result.exposed_seconds = std::max(0.0, seconds - result.compute_seconds);
  }
  return result;
}

}  // namespace cpnsa
