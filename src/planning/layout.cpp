#include "src/planning/layout.hpp"

#include <algorithm>
#include <utility>

namespace cpnsa::planning {
namespace {

std::vector<Document> place_documents(const Config& config, const Partition& partition) {
  std::vector<Document> documents;
  std::int64_t block = 0, summary = 0;
  const auto bounds = partition.cu_seqlens();
  for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
    const std::int64_t length = bounds[i + 1] - bounds[i];
    documents.push_back({bounds[i], length, block, config.blocks_of(length), summary, config.summaries_of(length)});
    block += documents.back().blocks;
    summary += documents.back().summaries;
  }
  return documents;
}

// Splits the rank's ranges at document bounds; joins what is consecutive both as tokens and as rows.
std::vector<OwnedRun> split_runs(const std::vector<Document>& documents, const Partition& partition, int rank) {
  std::vector<OwnedRun> runs;
  std::int64_t row = 0;
  for (const TokenRange& range : partition.ranges(rank)) {
    // The last document that begins at or before the range and is not empty holds its first token.
    auto document = std::upper_bound(documents.begin(), documents.end(), range.begin,
                                     [](std::int64_t token, const Document& d) { return token < d.begin; }) -
                    1;
    for (std::int64_t token = range.begin; token < range.end; ++document) {
      const std::int64_t end = std::min(range.end, document->begin + document->length);
      if (end <= token) continue;
      const std::int64_t index = document - documents.begin();
      if (!runs.empty() && runs.back().document == index && runs.back().end() == token)
        runs.back().rows += end - token;
      else
        runs.push_back({rank, index, token, end - token, row});
      row += end - token;
      token = end;
    }
  }
  return runs;
}

}  // namespace

Layout::Layout(const Config& config, const Partition& partition)
    : documents(place_documents(config, partition)), config_(config) {
  blocks = documents.back().block + documents.back().blocks;
  summaries = documents.back().summary + documents.back().summaries;
  block_owner.resize(to_size(blocks));
  block_row.resize(to_size(blocks));

  for (int rank = 0; rank < partition.ranks(); ++rank) {
    runs.push_back(split_runs(documents, partition, rank));
    rows.push_back(partition.local_tokens(rank));
    std::int64_t own = 0;
    std::vector<RowRange>& ranges = summary_ranges.emplace_back();
    for (const OwnedRun& run : runs.back()) {
      const Document& document = document_of(run);
      const std::int64_t m = config.select_block;
      for (std::int64_t offset = 0; offset < run.rows; offset += m) {
        const auto block = to_size(document.block + (run.begin - document.begin + offset) / m);
        block_owner[block] = rank;
        block_row[block] = run.row + offset;
      }
      const auto [first, inside, last] = summaries_starting_in(run);
      if (first < last) ranges.push_back({own, document.summary + first, last - first});
      own += last - first;
    }
    own_summaries.push_back(own);
    runs_by_token.insert(runs_by_token.end(), runs.back().begin(), runs.back().end());
  }
  std::sort(runs_by_token.begin(), runs_by_token.end(),
            [](const OwnedRun& a, const OwnedRun& b) { return a.begin < b.begin; });
}

RunSummaries Layout::summaries_starting_in(const OwnedRun& run) const {
  const Document& document = document_of(run);
  const std::int64_t l = config_.compress_block, s = config_.compress_stride;
  const std::int64_t position = run.begin - document.begin;  // a multiple of m, so of s
  const std::int64_t first = std::min(position / s, document.summaries);
  const std::int64_t last = std::min((position + run.rows + s - 1) / s, document.summaries);
  const std::int64_t inside = run.rows < l ? first : first + (run.rows - l) / s + 1;
  return {first, std::min(inside, last), last};
}

std::vector<std::int64_t> Layout::reachable_blocks(int rank) const {
  std::vector<std::pair<std::int64_t, std::int64_t>> last_owned;  // document, its last block that the rank owns
  for (const OwnedRun& run : at(runs, rank)) {
    const Document& document = document_of(run);
    last_owned.emplace_back(run.document, document.block + (run.end() - 1 - document.begin) / config_.select_block);
  }
  std::sort(last_owned.begin(), last_owned.end());

  std::vector<std::int64_t> reachable;
  for (std::size_t i = 0; i < last_owned.size(); ++i) {
    const auto [document, last] = last_owned[i];
    if (i + 1 < last_owned.size() && last_owned[i + 1].first == document) continue;  // a later run reaches further
    for (std::int64_t block = at(documents, document).block; block < last; ++block)
      if (at(block_owner, block) != rank) reachable.push_back(block);
  }
  return reachable;
}

}  // namespace cpnsa::planning
