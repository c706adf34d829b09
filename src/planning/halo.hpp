#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/ops.hpp"
#include "cpnsa/partition.hpp"
#include "src/planning/layout.hpp"
#include "src/planning/peer_range.hpp"

namespace cpnsa::planning {

/// Rows that one rank keeps beside its own: the tokens of `stored`, one after another, brought in from other ranks and,
/// where a stored range runs over the rank's own tokens, copied from its own rows. Every stored row has one source, so
/// that gradients go back along the same lists without two of them meeting.
struct RankHalo {
  std::vector<TokenRange> stored;        ///< ascending, disjoint, not adjacent
  std::vector<std::int64_t> stored_row;  ///< first halo row of each
  std::int64_t rows = 0;

  std::vector<RowRange> own;        ///< own rows -> halo rows
  std::vector<RowRange> received;   ///< rows of the receive buffer -> halo rows
  std::vector<PeerRange> receives;  ///< the receive buffer: peers ascending, each one's tokens ascending
  std::int64_t received_rows = 0;

  std::vector<RowRange> packed;  ///< own rows -> rows of the send buffer
  std::vector<PeerRange> sends;  ///< the send buffer: peers ascending, each one's tokens ascending
  std::int64_t sent_rows = 0;
  std::vector<std::int64_t> packed_first;  ///< index in `packed` of the first item of each entry of `sends`

  /// The halo row of a stored token.
  std::int64_t row_of(std::int64_t token) const;
};

/// needed[r]: token ranges that rank r wants in its halo, each within one document, in any order, overlapping or not.
/// Returns every rank's halo; sends and receives of all ranks match.
std::vector<RankHalo> plan_halo(const Layout& layout, const std::vector<std::vector<TokenRange>>& needed);

/// What summaries that start in a rank's runs and end beyond them cover.
std::vector<std::vector<TokenRange>> summary_halo_ranges(const Layout& layout, const Config& config);

/// The w - 1 tokens before each of a rank's runs.
std::vector<std::vector<TokenRange>> window_halo_ranges(const Layout& layout, const Config& config);

}  // namespace cpnsa::planning
