#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "cpnsa/decode_forecast.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/page_allocator.hpp"
#include "src/inference/decode_plan.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

// Fitted to the six steps that docs/performance.md measures on one H200, from 1 x 64K to 4 x 1M tokens; the largest
// miss is 11 %. A step reads at a quarter of a copy's speed.
constexpr double h200_fixed_seconds = 92e-6;
constexpr double h200_bytes_per_second = 1.027e12;
constexpr double h100_of_h200_bandwidth = 3.35 / 4.8;  // of the data sheets

PageCounts times(PageCounts pages, std::int64_t sequences) {
  pages.cmp *= sequences, pages.slc *= sequences, pages.win *= sequences, pages.summaries *= sequences;
  return pages;
}

PageCounts only(CachePart part, const PageCounts& pages) {
  PageCounts one;
  switch (part) {
    case CachePart::cmp: one.cmp = pages.cmp; break;
    case CachePart::slc: one.slc = pages.slc; break;
    case CachePart::win: one.win = pages.win; break;
    case CachePart::summaries: one.summaries = pages.summaries; break;
  }
  return one;
}

DecodeRankForecast forecast_rank(const DecodePlan& plan, const DecodeMemory& device) {
  const KvCacheLayout& layout = plan.layout;
  DecodeRankForecast result;
  result.rank = plan.rank;
  result.pages =
      times(PageAllocator::pages_for(layout, plan.rank, plan.options.max_length), plan.options.max_sequences);
  result.cache_bytes = layout.bytes(result.pages);
  for (const CachePart part : enum_values<CachePart>)
    if (const std::size_t bytes = layout.bytes(only(part, result.pages)); bytes > 0)
      result.cache.push_back({std::string(name_of(part)), bytes});
  Arena arena;
  const DecodeBuffers buffers(arena, plan, device.scratch_bytes);
  result.workspace_bytes = arena.used();
  result.schedule_bytes = device.schedule_bytes;
  return result;
}

// All-gathers in a row; within a node, or as fast as the links between nodes.
double message_seconds(const DecodePlan& plan, const NetworkModel& network) {
  const bool wide = plan.ranks > network.ranks_per_node;
  const double latency = wide ? network.wide_seconds : network.node_seconds;
  const double bandwidth = wide ? network.wide_bytes_per_second : network.node_bytes_per_second;
  const auto bytes = plan.received_bytes(plan.options.max_tokens);
  const auto all = static_cast<double>(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}));
  return plan.messages() * latency + (bandwidth > 0 ? all / bandwidth : 0);
}

}  // namespace

DecodeModel built_in_decode(std::string_view name) {
  const ComputeModel compute = built_in_compute(name);
  DecodeModel model{std::string(name), "fitted to six decoding steps of one H200, docs/performance.md, within 11 %",
                    h200_fixed_seconds, h200_bytes_per_second, compute.memory_bytes};
  if (name != "h200") {
    model.source += ", scaled by the bandwidth of the memory";
    model.bytes_per_second *= h100_of_h200_bandwidth;
  }
  return model;
}

double decode_read_bytes(const Config& config, DType dtype, std::int64_t sequences, std::int64_t queries,
                         std::int64_t length) {
  const std::int64_t selected = std::min(length, config.select_count * config.select_block),
                     window = std::min(length, config.window);
  const auto row = static_cast<double>(config.num_kv_heads * (config.head_dim_qk + config.head_dim_v));
  double elements = static_cast<double>(sequences * (config.summaries_of(length) + selected + window)) * row;
  if (length / config.compress_stride > (length - queries) / config.compress_stride) {
    const auto weights = [&](std::int64_t dim, std::int64_t hidden) -> std::int64_t {
      switch (config.compressor) {
        case Compressor::mean: return 0;
        case Compressor::linear: return config.compress_block * dim * dim;
        case Compressor::mlp: return config.compress_block * dim * hidden + hidden * dim;
      }
      return 0;
    };
    elements += static_cast<double>(config.num_kv_heads * (weights(config.head_dim_qk, config.compress_hidden_k) +
                                                           weights(config.head_dim_v, config.compress_hidden_v)));
  }
  return elements * static_cast<double>(size_of(dtype));
}

std::size_t DecodeForecast::rank_bytes(std::int64_t layers) const {
  std::size_t bytes = 0;
  for (const DecodeRankForecast& rank : of_ranks)
    bytes = std::max(bytes, to_size(layers) * rank.cache_bytes + rank.workspace_bytes + rank.schedule_bytes);
  return bytes;
}

DecodeForecast forecast_decode(const Config& config, int ranks, const DecodeForecastOptions& options,
                               const DecodeModel& model, const NetworkModel& network) {
  config.with_defaults().validate();
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected 1 or more", ranks));
  DecodeForecast result;
  result.ranks = ranks;
  result.device_counted = static_cast<bool>(options.memory);
  // Pages are dealt from rank 0 on, so it holds the most; the ranks behind hold a page less.
  for (const int rank : std::set<int>{0, ranks / 2, ranks - 1}) {
    const DecodePlan plan(config, options.decoder, rank, ranks);
    if (plan.config.branches != BranchSet::all)
      throw UnsupportedError(
          fmt::format("branches: found {}, expected all, which the decoder has", name_of(plan.config.branches)));
    result.of_ranks.push_back(forecast_rank(plan, options.memory ? options.memory(plan.size()) : DecodeMemory{}));
    result.max_cache_bytes = std::max(result.max_cache_bytes, result.of_ranks.back().cache_bytes);
    if (rank != 0) continue;
    const DecoderOptions& sizes = plan.options;
    result.messages = plan.messages();
    result.bytes_received = plan.received_bytes(sizes.max_tokens);
    const std::int64_t queries = std::max<std::int64_t>(1, sizes.max_tokens / sizes.max_sequences);
    result.read_bytes =
        decode_read_bytes(plan.config, sizes.cache.dtype, sizes.max_sequences, queries, sizes.max_length);
    if (model.bytes_per_second <= 0) continue;
    result.compute_seconds = model.fixed_seconds + result.read_bytes / ranks / model.bytes_per_second;
    result.message_seconds = message_seconds(plan, network);
  }
  return result;
}

}  // namespace cpnsa
