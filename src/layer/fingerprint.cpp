#include "src/layer/fingerprint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "cpnsa/schema.hpp"

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

std::string_view word_of(bool value) {
  return value ? "true" : "false";
}
template <NamedEnum Enum>
std::string_view word_of(Enum value) {
  return name_of(value);
}
std::string_view word_of(std::optional<DType> value) {
  return value ? name_of(*value) : "none";
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
  std::string text =
      fmt::format("{} tokens={} documents={} cu_seqlens={} partition_hash={:x}", config.describe(), partition.tokens(),
                  partition.cu_seqlens().size() - 1, describe_documents(partition.cu_seqlens()), ownership);
  AttentionOptions chosen = options;
  chosen.gradient_dtype = options.gradient_dtype.value_or(options.dtype);
  chosen.parameter_gradient_dtype = options.parameter_gradient_dtype.value_or(accumulate_dtype(options.dtype));
  schema::for_each_option(chosen, [&](const schema::OptionKey& key, const auto& value) {
    if (key.compared) text += fmt::format(" {}={}", key.name, word_of(value));
  });
  return text;
}

}  // namespace cpnsa
