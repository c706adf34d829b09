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

/// The assignment of the tokens of a packed sequence to ranks: for each rank an ordered list of ranges, whose
/// concatenation is the order of the rank's local rows. Every range starts and ends at a selection-block boundary of a
/// document or at the end of a document, so a selection block has one owner. A range may span documents; a rank may own
/// nothing.
class Partition {
 public:
  static constexpr std::int64_t max_tokens = (std::int64_t{1} << 31) - 1;  ///< rows, blocks and slots are 32-bit
  static constexpr std::int64_t max_ranks = std::int64_t{1} << 20;

  /// One contiguous part per rank, as even as whole selection blocks allow. Document i has tokens [cu_seqlens[i],
  /// cu_seqlens[i + 1]); an empty document is allowed. Throws ArgumentError unless `cu_seqlens` starts at 0, does not
  /// descend and ends at T, 1 to max_tokens, `select_block` is at least 1, and `ranks` 1 to max_ranks.
  static Partition contiguous(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// The packed sequence in 2P chunks, of which rank r of P owns chunks r and 2P - 1 - r, which balances the work of
  /// the causal compressed branch. Errors as above.
  static Partition zigzag(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// Each document in 2P chunks, assigned as by zigzag() (the layout of Megatron-LM for packed sequences). Errors as
  /// above.
  static Partition zigzag_per_document(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks);

  /// One of the above by its kind.
  static Partition make(PartitionKind kind, std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                        int ranks);

  /// Rank r owns ranges[r]. Throws ArgumentError that names the rank and the range unless every token has exactly one
  /// owner and every bound is a block boundary or the end of a document.
  static Partition custom(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                          std::vector<std::vector<TokenRange>> ranges);

  int ranks() const { return static_cast<int>(ranges_.size()); }
  std::int64_t tokens() const { return cu_seqlens_.back(); }  ///< T
  std::int64_t select_block() const { return select_block_; }
  std::span<const std::int64_t> cu_seqlens() const { return cu_seqlens_; }
  std::span<const TokenRange> ranges(int rank) const { return ranges_[static_cast<std::size_t>(rank)]; }
  std::int64_t local_tokens(int rank) const;  ///< number of tokens, and of local rows, of the rank

  /// For each local row of the rank, its token in the packed sequence: [local_tokens(rank)].
  std::vector<std::int64_t> global_rows(int rank) const;

  /// local [local_tokens(rank)] = the rank's rows of packed [T]. Both are in host memory; a row is `row_bytes` long.
  void scatter(const void* packed, void* local, int rank, std::size_t row_bytes) const;
  /// The rank's rows of packed [T] = local [local_tokens(rank)]: the inverse of scatter().
  void gather(const void* local, void* packed, int rank, std::size_t row_bytes) const;

 private:
  Partition() = default;

  std::vector<std::int64_t> cu_seqlens_;
  std::int64_t select_block_ = 0;
  std::vector<std::vector<TokenRange>> ranges_;
};

}  // namespace cpnsa
