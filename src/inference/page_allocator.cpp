#include "cpnsa/page_allocator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "cpnsa/error.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

constexpr std::int64_t& count_of(PageCounts& counts, CachePart part) {
  switch (part) {
    case CachePart::cmp: return counts.cmp;
    case CachePart::slc: return counts.slc;
    case CachePart::win: return counts.win;
    case CachePart::summaries: break;
  }
  return counts.summaries;
}

}  // namespace

PageAllocator::PageAllocator(const KvCacheLayout& layout, int rank, const PageCounts& pages, std::int64_t slots,
                             std::int64_t max_length, std::optional<std::uint64_t> seed)
    : layout_(layout), rank_(rank), slots_(slots), max_length_(max_length) {
  const auto check = [](const char* name, std::int64_t found) {
    constexpr std::int64_t limit = std::int64_t{1} << 31;
    if (found < 0 || found >= limit)
      throw ArgumentError(fmt::format("{}: found {}, expected 0 to 2^31 - 1", name, found));
  };
  check("slots", slots);
  check("max_length", max_length);
  std::mt19937_64 random(seed.value_or(0));
  PageCounts counts = pages;
  for (const CachePart part : enum_values<CachePart>) {
    if (layout.pages_with(part) != part) continue;
    check("pages", count_of(counts, part));
    Pool& pool = at(pools_, part);
    pool.columns = layout.pages_of(part, max_length, rank);
    pool.pages = count_of(counts, part);
    for (std::int64_t page = pool.pages; page-- > 0;) pool.free.push_back(static_cast<std::int32_t>(page));
    if (seed) std::shuffle(pool.free.begin(), pool.free.end(), random);
    pool.users.assign(to_size(pool.pages), 0);
    pool.table.assign(to_size(slots * pool.columns), -1);
    pool.filled.assign(to_size(slots), 0);
  }
}

PageCounts PageAllocator::pages_for(const KvCacheLayout& layout, int rank, std::int64_t length) {
  PageCounts counts;
  for (const CachePart part : enum_values<CachePart>)
    if (layout.pages_with(part) == part) count_of(counts, part) = layout.pages_of(part, length, rank);
  return counts;
}

void PageAllocator::reserve(std::int64_t slot, std::int64_t length) {
  check_slot(slot);
  if (length < 0 || length > max_length_)
    throw ArgumentError(
        fmt::format("length: found {} for slot {}, expected 0 to {}, max_length", length, slot, max_length_));
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    const Pool& pool = at(pools_, part);
    const std::int64_t needed = layout_.pages_of(part, length, rank_) - at(pool.filled, slot);
    if (needed > static_cast<std::int64_t>(pool.free.size()))
      throw ArgumentError(fmt::format("pages of {}: found {} left of {}, expected {} for {} tokens of slot {}",
                                      name_of(part), pool.free.size(), pool.pages, needed, length, slot));
  }
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    Pool& pool = at(pools_, part);
    std::int32_t& filled = at(pool.filled, slot);
    for (; filled < layout_.pages_of(part, length, rank_); ++filled) entry(pool, slot, filled) = take(part, pool);
  }
}

void PageAllocator::release(std::int64_t slot) {
  check_slot(slot);
  for (Pool& pool : pools_) {
    if (pool.filled.empty()) continue;
    std::int32_t& filled = at(pool.filled, slot);
    while (filled > 0) give_back(pool, entry(pool, slot, --filled));
  }
}

std::vector<PageCopy> PageAllocator::cut(std::int64_t slot, std::int64_t length) {
  check_slot(slot);
  std::vector<PageCopy> copies;
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    Pool& pool = at(pools_, part);
    std::int32_t& filled = at(pool.filled, slot);
    while (filled > layout_.pages_of(part, length, rank_)) give_back(pool, entry(pool, slot, --filled));
    for (std::int64_t column = layout_.shareable_pages(part, length, rank_); column < filled; ++column) {
      std::int32_t& page = entry(pool, slot, column);
      if (page < 0 || at(pool.users, page) == 1) continue;
      const std::int32_t copy = take(part, pool);
      copies.push_back({part, page, copy});
      give_back(pool, page);
      page = copy;
    }
  }
  return copies;
}

void PageAllocator::drop_before(std::int64_t slot, std::int64_t length) {
  check_slot(slot);
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    Pool& pool = at(pools_, part);
    const int ranks = layout_.ranks_of(part), rank = ranks == 1 ? 0 : rank_;
    const std::int64_t first_page = layout_.first_token(part, length) / layout_.page();
    for (std::int64_t column = 0; column < at(pool.filled, slot) && column * ranks + rank < first_page; ++column)
      give_back(pool, entry(pool, slot, column));
  }
}

std::vector<PageCopy> PageAllocator::fork(std::int64_t from, std::int64_t to, std::int64_t tokens) {
  check_slot(from), check_slot(to);
  for (const CachePart part : enum_values<CachePart>)
    if (layout_.pages_with(part) == part && at(at(pools_, part).filled, to) > 0)
      throw ArgumentError(fmt::format("slot: found {}, which has pages, expected an empty one", to));
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    Pool& pool = at(pools_, part);
    const std::int64_t shared =
        std::min<std::int64_t>(layout_.shareable_pages(part, tokens, rank_), at(pool.filled, from));
    for (std::int64_t column = 0; column < shared; ++column) {
      const std::int32_t page = entry(pool, from, column);
      entry(pool, to, column) = page;
      if (page >= 0) ++at(pool.users, page);
    }
    at(pool.filled, to) = static_cast<std::int32_t>(shared);
  }
  try {
    reserve(to, tokens);
  } catch (...) {
    release(to);
    throw;
  }
  std::vector<PageCopy> copies;
  for (const CachePart part : enum_values<CachePart>) {
    if (layout_.pages_with(part) != part) continue;
    Pool& pool = at(pools_, part);
    for (std::int64_t column = 0; column < std::min(at(pool.filled, to), at(pool.filled, from)); ++column) {
      const std::int32_t source = entry(pool, from, column), copy = entry(pool, to, column);
      if (source >= 0 && source != copy) copies.push_back({part, source, copy});
    }
  }
  return copies;
}

std::int64_t PageAllocator::columns(CachePart part) const {
  return pool(part).columns;
}

std::int64_t PageAllocator::free_pages(CachePart part) const {
  return static_cast<std::int64_t>(pool(part).free.size());
}

const std::vector<std::int32_t>& PageAllocator::table(CachePart part) const {
  return pool(part).table;
}

PageTable PageAllocator::on_device(CachePart part, const std::int32_t* device_table) const {
  return {device_table, pool(part).columns, pool(part).pages};
}

void PageAllocator::check_slot(std::int64_t slot) const {
  if (slot < 0 || slot >= slots_)
    throw ArgumentError(fmt::format("slot: found {}, expected 0 to {}", slot, slots_ - 1));
}

PageAllocator::Pool& PageAllocator::pool(CachePart part) {
  return at(pools_, layout_.pages_with(part));
}

const PageAllocator::Pool& PageAllocator::pool(CachePart part) const {
  return at(pools_, layout_.pages_with(part));
}

std::int32_t& PageAllocator::entry(Pool& pool, std::int64_t slot, std::int64_t column) {
  return at(pool.table, slot * pool.columns + column);
}

std::int32_t PageAllocator::take(CachePart part, Pool& pool) {
  if (pool.free.empty())
    throw ArgumentError(fmt::format("pages of {}: found none left of {}, expected one", name_of(part), pool.pages));
  const std::int32_t page = pool.free.back();
  pool.free.pop_back();
  at(pool.users, page) = 1;
  return page;
}

void PageAllocator::give_back(Pool& pool, std::int32_t& page) {
  if (page >= 0 && --at(pool.users, page) == 0) pool.free.push_back(page);
  page = -1;
}

void copy_pages(const KvCacheLayout& layout, const KvCache& cache, const std::vector<PageCopy>& copies, Device& device,
                Stream stream) {
  const auto copy = [&](const TensorView& pool, const PageCopy& pages) {
    const std::size_t bytes = pool.shape[0] > 0 ? pool.bytes() / to_size(pool.shape[0]) : 0;
    auto* const base = static_cast<std::byte*>(pool.data);
    device.copy(base + to_size(pages.to) * bytes, base + to_size(pages.from) * bytes, bytes, stream);
  };
  for (const PageCopy& pages : copies) {
    switch (layout.pages_with(pages.part)) {
      case CachePart::cmp: copy(cache.k.cmp, pages), copy(cache.v.cmp, pages); break;
      case CachePart::slc: copy(cache.k.slc, pages), copy(cache.v.slc, pages); break;
      case CachePart::win: copy(cache.k.win, pages), copy(cache.v.win, pages); break;
      case CachePart::summaries: copy(cache.summaries_k, pages), copy(cache.summaries_v, pages); break;
    }
  }
}

}  // namespace cpnsa
