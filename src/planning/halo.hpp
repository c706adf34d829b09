#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/ops.hpp"
#include "cpnsa/partition.hpp"
#include "src/planning/layout.hpp"
#include "src/planning/peer_range.hpp"

namespace cpnsa::planning {

/// Rows that one rank stores in addition to its own: the tokens of `stored`, one after another. They are received from
/// other ranks or, where a stored range covers the rank's own tokens, copied from its own rows. Every stored row has
/// one source, so gradients are sent back along the same lists, and no two of them are added to one row.
struct RankHalo {
  std::vector<TokenRange> stored;        ///< ascending, disjoint, not adjacent
  std::vector<std::int64_t> stored_row;  ///< first halo row of each
  std::int64_t rows = 0;

  std::vector<RowRange> own;        ///< own rows -> halo rows
  std::vector<RowRange> received;   ///< rows of the receive buffer -> halo rows
  std::vector<PeerRange> receives;  ///< the receive buffer: peers ascending, each one's tokens ascending
  std::int64_t received_rows = 0;
  std::vector<std::int64_t> sender_first;  ///< of each entry of `receives`: its first row in the sender's send buffer

  std::vector<RowRange> packed;  ///< own rows -> rows of the send buffer
  std::vector<PeerRange> sends;  ///< the send buffer: peers ascending, each one's tokens ascending
  std::int64_t sent_rows = 0;
  std::vector<std::int64_t> packed_first;    ///< index in `packed` of the first item of each entry of `sends`
  std::vector<std::int64_t> receiver_first;  ///< of each entry of `sends`: its first row in the receiver's buffer

  std::int64_t max_sent_rows = 0;      ///< of any rank
  std::int64_t max_received_rows = 0;  ///< of any rank

  /// The halo row of a stored token.
  std::int64_t row_of(std::int64_t token) const;
};

/// Plans every rank's halo. needed[r] are the token ranges that rank r needs in its halo, each within one document, in
/// any order, overlapping or not. The sends and receives of all ranks match.
std::vector<RankHalo> plan_halo(const Layout& layout, const std::vector<std::vector<TokenRange>>& needed);

/// For each rank the tokens that its straddling summaries cover, which start in its runs and end beyond them.
std::vector<std::vector<TokenRange>> summary_halo_ranges(const Layout& layout, const Config& config);

/// For each rank the w - 1 tokens before each of its runs.
std::vector<std::vector<TokenRange>> window_halo_ranges(const Layout& layout, const Config& config);

}  // namespace cpnsa::planning
