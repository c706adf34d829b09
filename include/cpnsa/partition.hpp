#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "cpnsa/names.hpp"

namespace cpnsa {

/// Tokens [begin, end) of the packed sequence.
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

/// The partitions that the library makes itself, by the names of the functions that make them.
enum class PartitionKind { contiguous, zigzag, zigzag_per_document };
constexpr auto names_of(PartitionKind) {
  return std::to_array<std::string_view>({"contiguous", "zigzag", "zigzag_per_document"});
}

/// Which rank owns which tokens of a packed sequence: for each rank an ordered list of ranges, whose concatenation is
/// the order of the rank's local rows. Every range starts and ends on a selection-block boundary of a document or at a
/// document's end, so a selection block has one owner. A range may span documents; a rank may own nothing.
class Partition {
 public:
  /// `cu_seqlens` [B + 1] bounds the documents: starts at 0, does not descend (an empty document is allowed), ends at
  /// T >= 1. Throws ArgumentError otherwise. Sizes are as even as whole blocks allow.
  static Partition contiguous(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// The packed sequence in 2P chunks; rank r owns chunks r and 2P - 1 - r. Evens out the causal compressed branch.
  static Partition zigzag(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// Every document in 2P chunks of its own (the layout of Megatron-LM for packed sequences).
  static Partition zigzag_per_document(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// One of these by its kind.
  static Partition make(PartitionKind kind, std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                        int ranks);

  /// The caller's own: ranges[r] are rank r's. Throws ArgumentError naming the rank and range unless every token has
  /// exactly one owner and every bound is a block boundary or a document's end.
  static Partition custom(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                          std::vector<std::vector<TokenRange>> ranges);

  int ranks() const { return static_cast<int>(ranges_.size()); }
  std::int64_t tokens() const { return cu_seqlens_.back(); }  ///< T
  std::int64_t select_block() const { return select_block_; }
  std::span<const std::int64_t> cu_seqlens() const { return cu_seqlens_; }
  std::span<const TokenRange> ranges(int rank) const { return ranges_[static_cast<std::size_t>(rank)]; }
  std::int64_t local_tokens(int rank) const;

  /// The global token that each of the rank's local rows is. [local_tokens(rank)]
  std::vector<std::int64_t> global_rows(int rank) const;

  /// Copies the rank's rows out of a packed tensor, or back into it; rows are `row_bytes` long, in host memory.
  void scatter(const void* packed, void* local, int rank, std::size_t row_bytes) const;
  void gather(const void* local, void* packed, int rank, std::size_t row_bytes) const;

 private:
  Partition() = default;

  std::vector<std::int64_t> cu_seqlens_;
  std::int64_t select_block_ = 0;
  std::vector<std::vector<TokenRange>> ranges_;
};

}  // namespace cpnsa
