#include "src/layer/fingerprint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace cpnsa {

namespace {

void mix(std::uint64_t& hash, std::int64_t value) {
  hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
  hash ^= hash >> 29;
}

// The bounds of the documents: all of a few, or the first ones, the last one and a hash of all.
std::string describe_documents(std::span<const std::int64_t> bounds) {
  constexpr std::size_t shown = 6;
  if (bounds.size() <= shown) return fmt::format("[{}]", fmt::join(bounds, ","));
  std::uint64_t hash = 0;
  for (const std::int64_t bound : bounds) mix(hash, bound);
  return fmt::format("[{},...,{}]#{:x}", fmt::join(bounds.first(shown - 1), ","), bounds.back(), hash);
}

}  // namespace

std::string fingerprint(const Config& config, const Partition& partition, const AttentionOptions& options) {
  std::uint64_t ownership = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank)
    for (const TokenRange& range : partition.ranges(rank)) {
      mix(ownership, rank);
      mix(ownership, range.begin);
      mix(ownership, range.end);
    }
  return fmt::format(
      "{} tokens={} documents={} cu_seqlens={} partition_hash={:x} dtype={} exchange={} backward={} "
      "refetch_blocks={} recompute_branches={} reuse_saved={} gradient_dtype={} "
      "parameter_gradient_dtype={} sum_parameter_gradients={} compare_parameters={} compressed_query={} sinks={} "
      "given_selection={}",
      config.describe(), partition.tokens(), partition.cu_seqlens().size() - 1,
      describe_documents(partition.cu_seqlens()), ownership, name_of(options.dtype), name_of(options.exchange),
      options.backward, options.refetch_blocks, options.recompute_branches, options.reuse_saved,
      name_of(options.gradient_dtype.value_or(options.dtype)),
      name_of(options.parameter_gradient_dtype.value_or(accumulate_dtype(options.dtype))),
      options.sum_parameter_gradients, options.compare_parameters, options.compressed_query, options.sinks,
      options.given_selection);
}

}  // namespace cpnsa
