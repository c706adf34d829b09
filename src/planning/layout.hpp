#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/config.hpp"
#include "cpnsa/ops.hpp"
#include "cpnsa/partition.hpp"
#include "src/planning/at.hpp"

namespace cpnsa::planning {

/// One document of the packed sequence, and where its blocks and summaries are among those of all documents.
struct Document {
  std::int64_t begin;      ///< its first token
  std::int64_t length;     ///< tokens; 0 is allowed
  std::int64_t block;      ///< its first selection block, among all B
  std::int64_t blocks;     ///< its selection blocks, the last may be partial
  std::int64_t summary;    ///< its first summary, among all C
  std::int64_t summaries;  ///< its summaries
};

/// Consecutive tokens of one document that are consecutive local rows of one rank.
struct OwnedRun {
  int rank;
  std::int64_t document;
  std::int64_t begin;  ///< first token
  std::int64_t rows;
  std::int64_t row;  ///< first local row
  std::int64_t end() const { return begin + rows; }
};

/// Document-relative indices of the summaries that start in a run: [first, inside) lie in it whole, [inside, last) need
/// tokens beyond its end.
struct RunSummaries {
  std::int64_t first;
  std::int64_t inside;
  std::int64_t last;
};

/// Who owns which tokens, blocks and summaries, for all ranks: what every rank derives alike from the configuration and
/// the partition, before anything moves.
struct Layout {
  Layout(const Config& config, const Partition& partition);

  std::vector<Document> documents;
  std::vector<std::vector<OwnedRun>> runs;  ///< of each rank, in the order of its local rows
  std::vector<OwnedRun> runs_by_token;      ///< of all ranks, by first token
  std::vector<std::int64_t> rows;           ///< tokens of each rank

  std::int64_t blocks = 0;                ///< B
  std::vector<std::int32_t> block_owner;  ///< [B] rank
  std::vector<std::int64_t> block_row;    ///< [B] first local row, on the owner

  std::int64_t summaries = 0;                         ///< C
  std::vector<std::int64_t> own_summaries;            ///< summaries each rank computes
  std::vector<std::vector<RowRange>> summary_ranges;  ///< of each rank: source counts its summaries from 0 in the order
                                                      ///< of local rows, destination is the index among all C

  int ranks() const { return static_cast<int>(runs.size()); }

  const Document& document_of(const OwnedRun& run) const { return at(documents, run.document); }
  RunSummaries summaries_starting_in(const OwnedRun& run) const;

  /// Blocks that queries of the rank may select and that other ranks own, ascending: those of its documents before the
  /// last block that it owns there. All are full blocks: a later one follows in the document.
  std::vector<std::int64_t> reachable_blocks(int rank) const;

 private:
  Config config_;
};

}  // namespace cpnsa::planning
