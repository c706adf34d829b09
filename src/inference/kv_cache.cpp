#include "cpnsa/kv_cache.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cpnsa/arena.hpp"
#include "cpnsa/error.hpp"
#include "src/planning/checked.hpp"

namespace cpnsa {
namespace {

constexpr std::int64_t ceil_divide(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// How many of the pages 0, ..., count - 1 a rank holds.
std::int64_t dealt(std::int64_t count, int rank, int ranks) {
  return count > rank ? (count - rank + ranks - 1) / ranks : 0;
}

}  // namespace

KvCacheLayout::KvCacheLayout(const Config& config, const KvCacheOptions& options, int ranks)
    : config_(config.with_defaults()), options_(options), ranks_(ranks) {
  config_.validate();
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected at least 1", ranks));
  const std::int64_t m = config_.select_block;
  if (options_.page == 0) options_.page = m;
  constexpr std::int64_t max_page = std::int64_t{1} << 31;
  if (options_.page < 0 || options_.page % m != 0 || options_.page > max_page)
    throw ArgumentError(fmt::format("page: found {} tokens, expected a multiple of select_block {}", options_.page, m));
  if (ranks_ == 1) options_.replicate_summaries = false;
  if (options_.summary_page == 0) {
    constexpr std::int64_t enough = 64;  // rows that fill a tile of the attention kernels
    const std::int64_t brought = strides_per_page() + repeated_summaries();
    options_.summary_page = brought * ceil_divide(enough, brought);
  }
  if (options_.summary_page < 1 || options_.summary_page > max_page)
    throw ArgumentError(fmt::format("summary_page: found {} summaries, expected at least 1", options_.summary_page));
}

CachePart KvCacheLayout::pages_with(CachePart part) const {
  if (part == CachePart::win && options_.shared_branches) return CachePart::slc;
  if (part == CachePart::cmp && options_.shared_branches && !options_.replicate_summaries) return CachePart::slc;
  return part;
}

int KvCacheLayout::ranks_of(CachePart part) const {
  const bool of_summaries = part == CachePart::cmp || part == CachePart::summaries;
  return of_summaries && options_.replicate_summaries ? 1 : ranks_;
}

std::int64_t KvCacheLayout::edge_of(CachePart part) const {
  const bool holds_cmp = part != CachePart::summaries && pages_with(part) == pages_with(CachePart::cmp);
  return holds_cmp && ranks_of(CachePart::cmp) > 1 ? config_.compress_block - config_.compress_stride : 0;
}

std::int64_t KvCacheLayout::key_rows(CachePart part) const {
  return part == CachePart::summaries ? summary_page() : page() + 2 * edge_of(part);
}

std::int64_t KvCacheLayout::value_rows(CachePart part) const {
  return part == CachePart::summaries ? summary_page() : page() + edge_of(part);
}

std::int64_t KvCacheLayout::strides_per_page() const {
  return page() / config_.compress_stride;
}

std::int64_t KvCacheLayout::repeated_summaries() const {
  return ranks_of(CachePart::summaries) > 1 ? config_.compress_block / config_.compress_stride - 1 : 0;
}

std::int64_t KvCacheLayout::pages_of(CachePart part, std::int64_t length, int rank) const {
  if (length <= 0) return 0;
  const int ranks = ranks_of(part), own = ranks == 1 ? 0 : rank;
  if (part != CachePart::summaries) return dealt(ceil_divide(length + edge_of(part), page()), own, ranks);
  if (ranks == 1) return ceil_divide(length / config_.compress_stride, summary_page());
  const std::int64_t brought = strides_per_page() + repeated_summaries();
  return ceil_divide(dealt(ceil_divide(length, page()), own, ranks) * brought, summary_page());
}

std::int64_t KvCacheLayout::first_token(CachePart part, std::int64_t length) const {
  if (pages_with(part) == pages_with(CachePart::slc) || part == CachePart::summaries) return 0;
  const std::int64_t s = config_.compress_stride;
  const std::int64_t first =
      part == CachePart::win ? length - config_.window + 1 : (length / s + 1) * s - config_.compress_block;
  return std::max<std::int64_t>(0, first);
}

std::int64_t KvCacheLayout::shareable_pages(CachePart part, std::int64_t tokens, int rank) const {
  const int ranks = ranks_of(part), own = ranks == 1 ? 0 : rank;
  const std::int64_t edge = edge_of(part == CachePart::summaries ? CachePart::cmp : part);
  const std::int64_t pages = dealt(std::max<std::int64_t>(0, tokens - edge) / page(), own, ranks);
  if (part != CachePart::summaries) return pages;
  if (ranks == 1) return tokens / config_.compress_stride / summary_page();
  return pages * (strides_per_page() + repeated_summaries()) / summary_page();
}

std::size_t KvCacheLayout::page_bytes(CachePart part) const {
  const std::size_t element = size_of(options_.dtype);
  return checked_bytes(key_rows(part), config_.num_kv_heads * config_.head_dim_qk, element) +
         checked_bytes(value_rows(part), config_.num_kv_heads * config_.head_dim_v, element);
}

KvCache KvCacheLayout::lay_out(Arena& arena, const PageCounts& pages) const {
  KvCache cache;
  const auto pool = [&](std::int64_t count, std::int64_t rows, std::int64_t dim) {
    TensorView view(nullptr, options_.dtype, {count, rows, config_.num_kv_heads, dim});
    view.data = arena.take(view.bytes());
    return view;
  };
  const auto part = [&](CachePart which, std::int64_t count, TensorView& k, TensorView& v) {
    if (pages_with(which) != which) return;
    if (count < 0) throw ArgumentError(fmt::format("pages of {}: found {}, expected 0 or more", name_of(which), count));
    k = pool(count, key_rows(which), config_.head_dim_qk);
    v = pool(count, value_rows(which), config_.head_dim_v);
  };
  part(CachePart::slc, pages.slc, cache.k.slc, cache.v.slc);
  part(CachePart::cmp, pages.cmp, cache.k.cmp, cache.v.cmp);
  part(CachePart::win, pages.win, cache.k.win, cache.v.win);
  part(CachePart::summaries, pages.summaries, cache.summaries_k, cache.summaries_v);
  if (pages_with(CachePart::cmp) == CachePart::slc) cache.k.cmp = cache.k.slc, cache.v.cmp = cache.v.slc;
  if (pages_with(CachePart::win) == CachePart::slc) cache.k.win = cache.k.slc, cache.v.win = cache.v.slc;
  return cache;
}

std::size_t KvCacheLayout::bytes(const PageCounts& pages) const {
  Arena arena;
  lay_out(arena, pages);
  return arena.used();
}

KvCache KvCacheLayout::view(void* memory, const PageCounts& pages) const {
  Arena arena(memory);
  return lay_out(arena, pages);
}

}  // namespace cpnsa
