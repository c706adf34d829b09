#include "src/inference/decode_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cpnsa/error.hpp"
#include "src/planning/at.hpp"
#include "src/planning/checked.hpp"

namespace cpnsa {
namespace {

// Vector loads of the kernels are 16 bytes wide.
std::size_t padded_bytes(std::int64_t rows, std::int64_t width, std::size_t element) {
  constexpr std::size_t alignment = 16;
  return (checked_bytes(rows, width, element) + alignment - 1) / alignment * alignment;
}

DecoderOptions checked(DecoderOptions options) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const auto check = [](const char* name, std::int64_t found, std::int64_t min, std::int64_t max) {
    if (found < min || found > max)
      throw ArgumentError(fmt::format("{}: found {}, expected {} to {}", name, found, min, max));
  };
  check("max_length", options.max_length, 1, limit);
  check("max_sequences", options.max_sequences, 1, limit);
  check("max_tokens", options.max_tokens, 1, limit);
  return options;
}

}  // namespace

DecodePlan::DecodePlan(const Config& given_config, const DecoderOptions& given_options, int rank_, int ranks_)
    : config(given_config.with_defaults()),
      options(checked(given_options)),
      layout(config, options.cache, ranks_),
      rank(rank_),
      ranks(ranks_),
      accumulated(size_of(accumulate_dtype(options.cache.dtype))) {}

std::size_t DecodePlan::sums_bytes(std::int64_t tokens) const {
  return padded_bytes(tokens, config.num_q_heads, accumulated);
}

std::size_t DecodePlan::outs_bytes(std::int64_t tokens) const {
  return padded_bytes(tokens, config.num_q_heads * config.head_dim_v, accumulated);
}

std::size_t DecodePlan::scores_bytes(std::int64_t tokens) const {
  return padded_bytes(tokens, config.num_kv_heads * config.select_count, accumulated);
}

std::size_t DecodePlan::candidates_bytes(std::int64_t tokens) const {
  return padded_bytes(tokens, config.num_kv_heads * config.select_count, sizeof(std::int32_t));
}

std::size_t DecodePlan::part_bytes(DecodeTraffic traffic, std::int64_t tokens) const {
  if (alone() || (holds_summaries() && traffic != DecodeTraffic::parts)) return 0;
  switch (traffic) {
    case DecodeTraffic::log_sum_exps: return 2 * sums_bytes(tokens);
    case DecodeTraffic::candidates: return scores_bytes(tokens) + candidates_bytes(tokens);
    case DecodeTraffic::parts: return 2 * outs_bytes(tokens) + (holds_summaries() ? 2 : 1) * sums_bytes(tokens);
    case DecodeTraffic::control: break;
  }
  return 0;
}

DecodePlan::ByTraffic DecodePlan::received_bytes(std::int64_t tokens) const {
  ByTraffic bytes{};
  for (const DecodeTraffic traffic : enum_values<DecodeTraffic>)
    at(bytes, traffic) = static_cast<std::int64_t>(part_bytes(traffic, tokens)) * (ranks - 1);
  return bytes;
}

DecodeSize DecodePlan::size() const {
  return {.config = &config,
          .dtype = options.cache.dtype,
          .max_sequences = options.max_sequences,
          .max_tokens = options.max_tokens,
          .max_length = options.max_length,
          .ranks = ranks,
          .replicated_summaries = layout.options().replicate_summaries};
}

const PageTable& table_of(const DecodePlan& plan, CachePart part, const DecodeBatch& batch) {
  switch (plan.layout.pages_with(part)) {
    case CachePart::cmp: return batch.cmp;
    case CachePart::slc: return batch.slc;
    case CachePart::win: return batch.win;
    case CachePart::summaries: break;
  }
  return batch.summaries;
}

PartViews views_of(CachePart part, const KvCache& cache) {
  switch (part) {
    case CachePart::cmp: return {&cache.k.cmp, &cache.v.cmp};
    case CachePart::slc: return {&cache.k.slc, &cache.v.slc};
    case CachePart::win: return {&cache.k.win, &cache.v.win};
    case CachePart::summaries: break;
  }
  return {&cache.summaries_k, &cache.summaries_v};
}

PagedRows DecodePlan::rows(CachePart part, const KvCache& cache, const DecodeBatch& batch) const {
  const CachePart pool = layout.pages_with(part);
  const PageTable& table = table_of(*this, part, batch);
  const int dealt_to = layout.ranks_of(part);
  return {.k = views_of(pool, cache).k->data,
          .v = views_of(pool, cache).v->data,
          .pages = table.pool_pages,
          .table = table.pages,
          .columns = table.columns,
          .page = layout.page(),
          .edge = layout.edge_of(part),
          .rank = dealt_to == 1 ? 0 : rank,
          .ranks = dealt_to};
}

PagedSummaries DecodePlan::summaries(const KvCache& cache, const DecodeBatch& batch) const {
  const PageTable& table = batch.summaries;
  const int dealt_to = layout.ranks_of(CachePart::summaries);
  return {.k = cache.summaries_k.data,
          .v = cache.summaries_v.data,
          .pages = table.pool_pages,
          .table = table.pages,
          .columns = table.columns,
          .page = layout.summary_page(),
          .strides = layout.strides_per_page(),
          .repeated = layout.repeated_summaries(),
          .rank = dealt_to == 1 ? 0 : rank,
          .ranks = dealt_to};
}

DecodeBuffers::DecodeBuffers(Arena& arena, const DecodePlan& plan, std::size_t scratch_bytes) {
  const std::int64_t tokens = plan.options.max_tokens;
  const auto all = [&](DecodeTraffic traffic) { return plan.part_bytes(traffic, tokens) * to_size(plan.ranks); };
  scratch = arena.take(scratch_bytes);
  o_cmp = arena.take(plan.outs_bytes(tokens));
  o_win = arena.take(plan.messages() == 3 ? plan.outs_bytes(tokens) : 0);
  for (void*& sums : log_sum_exp) sums = arena.take(plan.sums_bytes(tokens));
  selected = static_cast<std::int32_t*>(arena.take(plan.candidates_bytes(tokens)));
  for (std::size_t traffic = 0; traffic < gathered.size(); ++traffic)
    gathered[traffic] = arena.take(all(static_cast<DecodeTraffic>(traffic)));
}

}  // namespace cpnsa
