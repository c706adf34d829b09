#include "cpnsa/partition.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "cpnsa/error.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

void validate(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, std::int64_t ranks) {
  if (cu_seqlens.size() < 2)
    throw ArgumentError(fmt::format("cu_seqlens: found {} entries, expected at least 2", cu_seqlens.size()));
  if (cu_seqlens.front() != 0)
    throw ArgumentError(fmt::format("cu_seqlens[0]: found {}, expected 0", cu_seqlens.front()));
  for (std::size_t i = 1; i < cu_seqlens.size(); ++i)
    if (cu_seqlens[i] < cu_seqlens[i - 1])
      throw ArgumentError(
          fmt::format("cu_seqlens[{}]: found {}, expected at least {}", i, cu_seqlens[i], cu_seqlens[i - 1]));
  if (cu_seqlens.back() < 1)
    throw ArgumentError(fmt::format("cu_seqlens: found {} tokens, expected at least 1", cu_seqlens.back()));
  if (cu_seqlens.back() > Partition::max_tokens)
    throw ArgumentError(
        fmt::format("cu_seqlens: found {} tokens, expected at most {}", cu_seqlens.back(), Partition::max_tokens));
  if (select_block < 1) throw ArgumentError(fmt::format("select_block: found {}, expected at least 1", select_block));
  if (ranks < 1 || ranks > Partition::max_ranks)
    throw ArgumentError(fmt::format("ranks: found {}, expected 1 to {}", ranks, Partition::max_ranks));
}

// Tokens [begin, end) cut into `chunks` consecutive ranges at the block boundaries nearest to even sizes. `bounds`
// holds every selection-block boundary of the stretch, ascending, `begin` and `end` included.
std::vector<TokenRange> cut(std::span<const std::int64_t> bounds, std::int64_t chunks) {
  const std::int64_t begin = bounds.front(), tokens = bounds.back() - begin;
  std::vector<TokenRange> ranges;
  std::int64_t previous = begin;
  for (std::int64_t chunk = 1; chunk <= chunks; ++chunk) {
    const std::int64_t even = begin + static_cast<std::int64_t>(static_cast<__int128>(tokens) * chunk / chunks);
    const auto above = std::lower_bound(bounds.begin(), bounds.end(), even);
    std::int64_t bound = *above;
    if (above != bounds.begin() && even - *(above - 1) < bound - even) bound = *(above - 1);
    bound = std::max(bound, previous);
    ranges.push_back({previous, bound});
    previous = bound;
  }
  return ranges;
}

std::vector<std::int64_t> block_bounds(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block) {
  std::vector<std::int64_t> bounds{0};
  for (std::size_t i = 1; i < cu_seqlens.size(); ++i)
    for (std::int64_t begin = cu_seqlens[i - 1]; begin < cu_seqlens[i]; begin = bounds.back())
      bounds.push_back(begin + std::min(select_block, cu_seqlens[i] - begin));  // select_block may be near 2^63
  return bounds;
}

void append(std::vector<TokenRange>& ranges, TokenRange range) {
  if (range.size() == 0) return;
  if (!ranges.empty() && ranges.back().end == range.begin)
    ranges.back().end = range.end;
  else
    ranges.push_back(range);
}

// Rank r owns chunks r and 2P - 1 - r of the stretch.
void deal_zigzag(std::vector<std::vector<TokenRange>>& ranges, std::span<const std::int64_t> bounds) {
  const std::size_t ranks = ranges.size();
  const std::vector<TokenRange> chunks = cut(bounds, static_cast<std::int64_t>(2 * ranks));
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    append(ranges[rank], chunks[rank]);
    append(ranges[rank], chunks[2 * ranks - 1 - rank]);
  }
}

}  // namespace

Partition Partition::contiguous(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks) {
  validate(cu_seqlens, select_block, ranks);
  std::vector<std::vector<TokenRange>> ranges(to_size(ranks));
  const std::vector<TokenRange> chunks = cut(block_bounds(cu_seqlens, select_block), ranks);
  for (std::size_t rank = 0; rank < chunks.size(); ++rank) append(ranges[rank], chunks[rank]);
  return custom(cu_seqlens, select_block, std::move(ranges));
}

Partition Partition::zigzag(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block, int ranks) {
  validate(cu_seqlens, select_block, ranks);
  std::vector<std::vector<TokenRange>> ranges(to_size(ranks));
  deal_zigzag(ranges, block_bounds(cu_seqlens, select_block));
  return custom(cu_seqlens, select_block, std::move(ranges));
}

Partition Partition::zigzag_per_document(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                                         int ranks) {
  validate(cu_seqlens, select_block, ranks);
  std::vector<std::vector<TokenRange>> ranges(to_size(ranks));
  const std::vector<std::int64_t> bounds = block_bounds(cu_seqlens, select_block);
  for (std::size_t document = 1; document < cu_seqlens.size(); ++document) {
    const auto first = std::lower_bound(bounds.begin(), bounds.end(), cu_seqlens[document - 1]);
    const auto last = std::lower_bound(bounds.begin(), bounds.end(), cu_seqlens[document]);
    if (first != last) deal_zigzag(ranges, {first, last + 1});
  }
  return custom(cu_seqlens, select_block, std::move(ranges));
}

Partition Partition::make(PartitionKind kind, std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                          int ranks) {
  switch (kind) {
    case PartitionKind::contiguous: return contiguous(cu_seqlens, select_block, ranks);
    case PartitionKind::zigzag: return zigzag(cu_seqlens, select_block, ranks);
    case PartitionKind::zigzag_per_document: return zigzag_per_document(cu_seqlens, select_block, ranks);
  }
  throw ArgumentError(fmt::format("partition: found kind {}, expected one of {}", static_cast<int>(kind),
                                  fmt::join(enum_names<PartitionKind>, ", ")));
}

Partition Partition::custom(std::span<const std::int64_t> cu_seqlens, std::int64_t select_block,
                            std::vector<std::vector<TokenRange>> ranges) {
  validate(cu_seqlens, select_block, static_cast<std::int64_t>(ranges.size()));
  const std::vector<std::int64_t> bounds = block_bounds(cu_seqlens, select_block);

  struct Owned {
    TokenRange range;
    std::size_t rank;
  };
  std::vector<Owned> owned;
  for (std::size_t rank = 0; rank < ranges.size(); ++rank) {
    std::erase_if(ranges[rank], [](const TokenRange& range) { return range.begin == range.end; });
    for (const TokenRange& range : ranges[rank]) {
      if (range.begin < 0 || range.end > cu_seqlens.back() || range.begin > range.end)
        throw ArgumentError(fmt::format("partition: rank {}: found range [{}, {}), expected one within [0, {})", rank,
                                        range.begin, range.end, cu_seqlens.back()));
      for (const std::int64_t bound : {range.begin, range.end})
        if (!std::binary_search(bounds.begin(), bounds.end(), bound))
          throw ArgumentError(fmt::format(
              "partition: rank {}: found a range bound at token {}, expected a boundary of a {}-token selection block "
              "of its document",
              rank, bound, select_block));
      owned.push_back({range, rank});
    }
  }
  std::sort(owned.begin(), owned.end(), [](const Owned& a, const Owned& b) { return a.range.begin < b.range.begin; });
  std::int64_t covered = 0;
  for (const Owned& next : owned) {
    if (next.range.begin != covered)
      throw ArgumentError(
          fmt::format("partition: found rank {}'s range [{}, {}), expected the next range to begin at "
                      "token {}: every token has exactly one owner",
                      next.rank, next.range.begin, next.range.end, covered));
    covered = next.range.end;
  }
  if (covered != cu_seqlens.back())
    throw ArgumentError(
        fmt::format("partition: found {} tokens with an owner, expected all {}", covered, cu_seqlens.back()));

  Partition partition;
  partition.cu_seqlens_.assign(cu_seqlens.begin(), cu_seqlens.end());
  partition.select_block_ = select_block;
  partition.ranges_ = std::move(ranges);
  return partition;
}

std::int64_t Partition::local_tokens(int rank) const {
  std::int64_t tokens = 0;
  for (const TokenRange& range : ranges(rank)) tokens += range.size();
  return tokens;
}

std::vector<std::int64_t> Partition::global_rows(int rank) const {
  std::vector<std::int64_t> rows;
  rows.reserve(to_size(local_tokens(rank)));
  for (const TokenRange& range : ranges(rank))
    for (std::int64_t token = range.begin; token < range.end; ++token) rows.push_back(token);
  return rows;
}

void Partition::scatter(const void* packed, void* local, int rank, std::size_t row_bytes) const {
  if (row_bytes == 0) return;  // the tensors may be null
  auto* to = static_cast<std::byte*>(local);
  for (const TokenRange& range : ranges(rank)) {
    const std::size_t bytes = to_size(range.size()) * row_bytes;
    std::memcpy(to, static_cast<const std::byte*>(packed) + to_size(range.begin) * row_bytes, bytes);
    to += bytes;
  }
}

void Partition::gather(const void* local, void* packed, int rank, std::size_t row_bytes) const {
  if (row_bytes == 0) return;  // the tensors may be null
  const auto* from = static_cast<const std::byte*>(local);
  for (const TokenRange& range : ranges(rank)) {
    const std::size_t bytes = to_size(range.size()) * row_bytes;
    std::memcpy(static_cast<std::byte*>(packed) + to_size(range.begin) * row_bytes, from, bytes);
    from += bytes;
  }
}

}  // namespace cpnsa
