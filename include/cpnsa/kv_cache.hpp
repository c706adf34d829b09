#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "cpnsa/arena.hpp"
#include "cpnsa/attention.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/dtype.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa {

/// The parts of a cache: the keys and values of each branch's tokens, and the summaries.
enum class CachePart { cmp, slc, win, summaries };
constexpr auto names_of(CachePart) {
  return std::to_array<std::string_view>({"cmp", "slc", "win", "summaries"});
}

/// The choices of a cache's layout, the same for all layers that share page tables and on every rank.
struct KvCacheOptions {
  DType dtype = DType::f32;
  std::int64_t page = 0;          ///< tokens of a page, a multiple of m; 0: m
  std::int64_t summary_page = 0;  ///< summaries of a page; 0: whole token pages' summaries, at least 64
  /// True if the caller passes the same keys and values for all three branches. They are then stored once.
  bool shared_branches = true;
  /// With more than one rank: every rank holds all summaries, and a step sends one message instead of three. The
  /// compressed branch's rows then have pages of their own on every rank, of which only the last are needed.
  bool replicate_summaries = false;
};

/// A number for each part of a cache.
struct PageCounts {
  std::int64_t cmp = 0;
  std::int64_t slc = 0;
  std::int64_t win = 0;
  std::int64_t summaries = 0;
};

/// One layer's cache: views of the caller's memory. Pages may lie anywhere in it, in any order; the page tables of a
/// DecodeBatch say which page holds what. The views of a part that shares its pages (KvCacheLayout::pages_with) are not
/// given, or are the same.
struct KvCache {
  BranchTensors k;         ///< [pages, KvCacheLayout::key_rows(part), G, d_qk]
  BranchTensors v;         ///< [pages, KvCacheLayout::value_rows(part), G, d_v]
  TensorView summaries_k;  ///< [pages, KvCacheLayout::summary_page(), G, d_qk]
  TensorView summaries_v;  ///< [pages, KvCacheLayout::summary_page(), G, d_v]
};

/// The layout of caches: what a page holds, which rank holds it, and how much memory it takes. decode_ops.hpp describes
/// the rows of a page.
///
/// Page p of a sequence holds the tokens [p page, (p + 1) page). With P ranks it is held by rank p mod P, whose page
/// table names it in column p / P.
class KvCacheLayout {
 public:
  /// Errors: ConfigError; ArgumentError for a page that is no multiple of m, or ranks < 1.
  KvCacheLayout(const Config& config, const KvCacheOptions& options, int ranks = 1);

  const Config& config() const { return config_; }
  const KvCacheOptions& options() const { return options_; }
  int ranks() const { return ranks_; }
  std::int64_t page() const { return options_.page; }
  std::int64_t summary_page() const { return options_.summary_page; }

  /// The part whose pages and page table hold this part too; the part itself if it has its own.
  CachePart pages_with(CachePart part) const;
  /// The ranks that the pages of the part are dealt to: 1 if every rank holds all of them.
  int ranks_of(CachePart part) const;
  /// l - s if pages of the part also hold the tokens next to them, for summaries that reach into the next page; else 0.
  std::int64_t edge_of(CachePart part) const;
  std::int64_t key_rows(CachePart part) const;    ///< rows of a page of keys
  std::int64_t value_rows(CachePart part) const;  ///< rows of a page of values
  std::int64_t strides_per_page() const;          ///< strides of a token page: page / s
  std::int64_t repeated_summaries() const;        ///< that a token page brings besides its own; see PagedSummaries

  /// Columns of the rank's page table that a sequence of `length` tokens fills. A step needs those of its length after
  /// it. With sharded pages this counts a page from the l - s tokens before it on.
  std::int64_t pages_of(CachePart part, std::int64_t length, int rank = 0) const;
  /// The first token that a step at `length` or later reads of the part; pages that lie before it may be given back. A
  /// sequence that is to be cut back needs them as of its shorter length.
  std::int64_t first_token(CachePart part, std::int64_t length) const;
  /// Leading columns of the rank's page table that two sequences may share if their first `tokens` tokens are equal:
  /// nothing that they hold depends on a later token.
  std::int64_t shareable_pages(CachePart part, std::int64_t tokens, int rank = 0) const;

  std::size_t page_bytes(CachePart part) const;  ///< of one page, keys and values
  /// Memory for one layer's pools, and the views of them. Counts of parts that share another part's pages are ignored.
  /// `memory` is 256-byte aligned; on the CPU 64-byte alignment is enough.
  std::size_t bytes(const PageCounts& pages) const;
  KvCache view(void* memory, const PageCounts& pages) const;

 private:
  KvCache lay_out(Arena& arena, const PageCounts& pages) const;

  Config config_;
  KvCacheOptions options_;
  int ranks_;
};

}  // namespace cpnsa
