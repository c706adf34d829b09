#include "src/layer/fingerprint.hpp"

#include <fmt/format.h>

#include <cstdint>

namespace cpnsa {

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

}  // namespace cpnsa
