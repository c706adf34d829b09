#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cpnsa/arena.hpp"
#include "cpnsa/decoder.hpp"
#include "cpnsa/ops.hpp"

namespace cpnsa {

/// The part of a decoder that never changes: pure data, without a device.
struct DecodePlan {
  using ByTraffic = std::array<std::int64_t, decode_traffic_kinds>;

  /// Errors: ConfigError, ArgumentError.
  DecodePlan(const Config& config, const DecoderOptions& options, int rank, int ranks);

  const Config config;
  const DecoderOptions options;
  const KvCacheLayout layout;
  const int rank;
  const int ranks;
  const std::size_t accumulated;  ///< bytes of one element of the accumulating type

  bool alone() const { return ranks == 1; }
  /// True if every rank computes the compressed branch and the selection whole.
  bool holds_summaries() const { return layout.ranks_of(CachePart::summaries) == 1; }
  int messages() const { return alone() ? 0 : holds_summaries() ? 1 : 3; }

  // Bytes of tensors of `tokens` rows in a message, each padded so that the next one is aligned.
  std::size_t sums_bytes(std::int64_t tokens) const;        ///< acc [tokens, H]
  std::size_t outs_bytes(std::int64_t tokens) const;        ///< acc [tokens, H, d_v]
  std::size_t scores_bytes(std::int64_t tokens) const;      ///< acc [tokens, G, n]
  std::size_t candidates_bytes(std::int64_t tokens) const;  ///< int32 [tokens, G, n]
  /// Bytes of one rank's part of a message; 0 if the step does not send it.
  std::size_t part_bytes(DecodeTraffic traffic, std::int64_t tokens) const;
  /// Bytes that a step of one layer receives.
  ByTraffic received_bytes(std::int64_t tokens) const;

  /// The sizes that the device asks for. Points to `config`.
  DecodeSize size() const;

  /// How a device finds the rows of a part in the layer's cache.
  PagedRows rows(CachePart part, const KvCache& cache, const DecodeBatch& batch) const;
  PagedSummaries summaries(const KvCache& cache, const DecodeBatch& batch) const;
};

/// The table that a part uses: its own, or that of the part whose pages it shares.
const PageTable& table_of(const DecodePlan& plan, CachePart part, const DecodeBatch& batch);

/// Keys and values of a part.
struct PartViews {
  const TensorView* k;
  const TensorView* v;
};
PartViews views_of(CachePart part, const KvCache& cache);

/// The workspace of a step.
struct DecodeBuffers {
  /// `scratch_bytes`: Device::decode_scratch_bytes().
  DecodeBuffers(Arena& arena, const DecodePlan& plan, std::size_t scratch_bytes);

  void* scratch;
  void* o_cmp;                       ///< acc [tokens, H, d_v]
  void* o_win;                       ///< acc [tokens, H, d_v], of this rank, where three messages are sent
  std::array<void*, 3> log_sum_exp;  ///< acc [tokens, H] by branch, over all ranks
  std::int32_t* selected;            ///< [tokens, G, n]
  std::array<void*, 3> gathered;     ///< by DecodeTraffic, all ranks' parts of the message
};

}  // namespace cpnsa
