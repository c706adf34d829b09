#include "src/planning/halo.hpp"

#include <algorithm>

namespace cpnsa::planning {
namespace {

std::vector<TokenRange> merged(std::vector<TokenRange> ranges) {
  std::erase_if(ranges, [](const TokenRange& range) { return range.size() <= 0; });
  std::sort(ranges.begin(), ranges.end(), [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
  std::vector<TokenRange> result;
  for (const TokenRange& range : ranges) {
    if (!result.empty() && range.begin <= result.back().end)
      result.back().end = std::max(result.back().end, range.end);
    else
      result.push_back(range);
  }
  return result;
}

// A stretch of one rank's halo that lies in one run of its owner.
struct Piece {
  int owner;
  std::int64_t owner_row;
  std::int64_t halo_row;
  std::int64_t count;
};

// The stored ranges cut at the bounds of their owners' runs, owners ascending, then tokens ascending.
std::vector<Piece> cut_by_owner(const Layout& layout, const RankHalo& halo) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < halo.stored.size(); ++i) {
    const TokenRange& stored = halo.stored[i];
    auto run = std::upper_bound(layout.runs_by_token.begin(), layout.runs_by_token.end(), stored.begin,
                                [](std::int64_t token, const OwnedRun& r) { return token < r.begin; }) -
               1;
    for (std::int64_t token = stored.begin; token < stored.end; ++run) {
      const std::int64_t end = std::min(stored.end, run->end());
      pieces.push_back(
          {run->rank, run->row + token - run->begin, halo.stored_row[i] + token - stored.begin, end - token});
      token = end;
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.owner < b.owner; });
  return pieces;
}

void append(std::vector<PeerRange>& list, std::int64_t& total, int peer, std::int64_t count) {
  if (list.empty() || list.back().peer != peer) list.push_back({peer, total, 0});
  list.back().count += count;
  total += count;
}

}  // namespace

std::int64_t RankHalo::row_of(std::int64_t token) const {
  const auto after = std::upper_bound(stored.begin(), stored.end(), token,
                                      [](std::int64_t t, const TokenRange& range) { return t < range.begin; });
  const auto index = to_size(after - stored.begin() - 1);
  return stored_row[index] + token - stored[index].begin;
}

std::vector<RankHalo> plan_halo(const Layout& layout, const std::vector<std::vector<TokenRange>>& needed) {
  std::vector<RankHalo> halos(needed.size());
  for (std::size_t rank = 0; rank < halos.size(); ++rank) {
    RankHalo& halo = halos[rank];
    halo.stored = merged(needed[rank]);
    for (const TokenRange& range : halo.stored) {
      halo.stored_row.push_back(halo.rows);
      halo.rows += range.size();
    }
  }
  // Receivers ascending, so that every send buffer comes out with its peers ascending too.
  for (std::size_t rank = 0; rank < halos.size(); ++rank) {
    RankHalo& halo = halos[rank];
    for (const Piece& piece : cut_by_owner(layout, halo)) {
      if (piece.owner == static_cast<int>(rank)) {
        halo.own.push_back({piece.owner_row, piece.halo_row, piece.count});
        continue;
      }
      RankHalo& owner = at(halos, piece.owner);
      if (owner.sends.empty() || owner.sends.back().peer != static_cast<int>(rank)) {
        owner.packed_first.push_back(static_cast<std::int64_t>(owner.packed.size()));
        owner.receiver_first.push_back(halo.received_rows);
        halo.sender_first.push_back(owner.sent_rows);
      }
      halo.received.push_back({halo.received_rows, piece.halo_row, piece.count});
      append(halo.receives, halo.received_rows, piece.owner, piece.count);
      owner.packed.push_back({piece.owner_row, owner.sent_rows, piece.count});
      append(owner.sends, owner.sent_rows, static_cast<int>(rank), piece.count);
    }
  }
  std::int64_t max_sent_rows = 0, max_received_rows = 0;
  for (const RankHalo& halo : halos) {
    max_sent_rows = std::max(max_sent_rows, halo.sent_rows);
    max_received_rows = std::max(max_received_rows, halo.received_rows);
  }
  for (RankHalo& halo : halos) {
    halo.max_sent_rows = max_sent_rows;
    halo.max_received_rows = max_received_rows;
  }
  return halos;
}

std::vector<std::vector<TokenRange>> summary_halo_ranges(const Layout& layout, const Config& config) {
  const std::int64_t l = config.compress_block, s = config.compress_stride;
  std::vector<std::vector<TokenRange>> ranges(to_size(layout.ranks()));
  for (const OwnedRun& run : layout.runs_by_token) {
    const std::int64_t begin = layout.document_of(run).begin;
    const RunSummaries summaries = layout.summaries_starting_in(run);
    if (summaries.inside < summaries.last)
      at(ranges, run.rank).push_back({begin + summaries.inside * s, begin + (summaries.last - 1) * s + l});
  }
  return ranges;
}

std::vector<std::vector<TokenRange>> window_halo_ranges(const Layout& layout, const Config& config) {
  std::vector<std::vector<TokenRange>> ranges(to_size(layout.ranks()));
  for (const OwnedRun& run : layout.runs_by_token) {
    const std::int64_t begin = layout.document_of(run).begin;
    const std::int64_t reach = std::min(config.window - 1, run.begin - begin);
    if (reach > 0) at(ranges, run.rank).push_back({run.begin - reach, run.begin});
  }
  return ranges;
}

}  // namespace cpnsa::planning
