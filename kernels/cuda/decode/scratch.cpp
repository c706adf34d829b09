#include "kernels/cuda/decode/scratch.hpp"

#include <algorithm>

#include "cpnsa/arena.hpp"
#include "kernels/cuda/decode/run_op.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr std::size_t budget = std::size_t{256} << 20;  // of each kind of partial results

/// Takes `count` items if they fit the budget. The bytes that are taken never fall when `count` grows.
template <class T>
T* take_within_budget(Arena& arena, std::int64_t count, bool& fits) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  fits = bytes <= budget;
  return static_cast<T*>(arena.take(std::min(bytes, budget)));
}

PartialRows partial_rows(Arena& arena, const Config& config, std::int64_t tokens, int parts) {
  PartialRows rows;
  const std::int64_t states = tokens * config.num_q_heads * parts;
  rows.parts = parts;
  rows.out = take_within_budget<float>(arena, states * config.head_dim_v, rows.split);
  bool fits = false;
  rows.state = take_within_budget<float2>(arena, states, fits);
  rows.split = rows.split && fits;
  return rows;
}

}  // namespace

TokenParts::TokenParts(const Config& config, std::int64_t max_length, bool selected_branch, bool window_branch) {
  const auto parts = [](std::int64_t keys) { return static_cast<int>((keys + part_keys - 1) / part_keys); };
  const std::int64_t blocks = std::min(config.select_count, config.blocks_of(max_length));
  const std::int64_t unused = (config.window - std::min(config.window, max_length)) / part_keys * part_keys;
  window_keys = static_cast<int>(config.window - unused);
  selected = selected_branch ? parts(blocks * config.select_block) : 0;
  window = window_branch ? parts(window_keys) : 0;
}

FirstLayer::FirstLayer(const Config& config, bool keys) {
  const std::int64_t dim = keys ? config.head_dim_qk : config.head_dim_v;
  const std::int64_t hidden = keys ? config.compress_hidden_k : config.compress_hidden_v;
  inputs = static_cast<int>(config.compress_block * dim);
  outputs = static_cast<int>(config.compressor == Compressor::mlp ? (hidden > 0 ? hidden : 2 * dim) : dim);
  splits = (inputs + product_inputs - 1) / product_inputs;
  columns = (outputs + product_columns - 1) / product_columns;
}

StepScratch::StepScratch(void* memory, const Config& config, const Capacity& capacity, bool one_rank) {
  Arena lasting(memory);  // from the compressed branch to the selection
  const std::int64_t pairs = std::int64_t{capacity.tokens} * config.num_q_heads;
  score_stride = (capacity.max_end + 31) / 32 * 32;
  bool fits = false;
  scores = take_within_budget<float>(lasting, pairs * score_stride, fits);
  if (!fits || !one_rank) scores = nullptr;

  // One after another in the same memory.
  Arena compressed = lasting, tokens = lasting, selection = lasting, compressor = lasting;
  chunks = partial_rows(compressed, config, capacity.tokens, capacity.chunks);
  const TokenParts token_parts(config, capacity.max_length, true, true);
  parts = partial_rows(tokens, config, capacity.tokens, token_parts.selected + token_parts.window);
  best = take_within_budget<std::uint64_t>(
      selection, std::int64_t{capacity.tokens} * config.num_kv_heads * capacity.select_chunks * config.select_count,
      fits);
  if (!fits) best = nullptr;
  if (config.compressor != Compressor::mean) {
    const FirstLayer k(config, true), v(config, false);
    const std::int64_t tiles = (2 * std::int64_t{capacity.max_completed} + product_rows - 1) / product_rows;
    products = take_within_budget<float>(compressor,
                                         tiles * config.num_kv_heads * product_rows * product_columns *
                                             (std::int64_t{k.splits} * k.columns + std::int64_t{v.splits} * v.columns),
                                         fits);
    if (!fits) products = nullptr;
  }
  bytes = std::max({compressed.used(), tokens.used(), selection.used(), compressor.used()});
}

std::size_t scratch_bytes(const DecodeSize& size) {
  return StepScratch(nullptr, *size.config,
                     Capacity(*size.config, size.max_sequences, size.max_tokens, size.max_length), true)
      .bytes;
}

std::size_t schedule_bytes(const DecodeSize& size) {
  Arena arena;
  Schedule(arena, *size.config, Capacity(*size.config, size.max_sequences, size.max_tokens, size.max_length));
  return arena.used();
}

}  // namespace cpnsa::cuda::decode
