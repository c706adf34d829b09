#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <vector>

#include "cpnsa/error.hpp"
#include "src/inference/decode_arguments.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

using Numbers = std::vector<std::int32_t>;

/// A batch whose arrays are on the host.
struct HostBatch {
  Numbers slots, lengths, cu_q;
  std::array<Numbers, 4> tables;  // by CachePart; empty for a part that shares another's pages
};

/// One sequence of the batch, for the checks and for their messages.
struct Sequence {
  std::int64_t index;
  std::int64_t slot;
  std::int64_t length;  ///< before the step
  std::int64_t end;     ///< after it
};

class BatchChecks {
 public:
  BatchChecks(const DecodePlan& plan, const DecodeBatch& batch, const HostBatch& host)
      : plan_(plan), batch_(batch), host_(host) {}

  void run() {
    std::map<std::int64_t, std::int64_t> sequence_of_slot;
    for (std::int64_t b = 0; b < batch_.sequences; ++b) {
      const Sequence sequence = check_numbers(b);
      const auto [before, is_new] = sequence_of_slot.emplace(sequence.slot, b);
      if (!is_new)
        throw ArgumentError(fmt::format("batch.slots: found slot {} for sequences {} and {}, expected one each",
                                        sequence.slot, before->second, b));
      if (sequence.end > sequence.length) check_pages(sequence);
    }
    check_writers();
  }

 private:
  Sequence check_numbers(std::int64_t b) const {
    const std::int64_t slot = batch_.slots ? at(host_.slots, b) : b;
    if (slot < 0 || slot >= batch_.num_slots)
      throw ArgumentError(
          fmt::format("batch.slots: found {} for sequence {}, expected 0 to {}", slot, b, batch_.num_slots - 1));
    const std::int64_t row = at(host_.cu_q, b), end = at(host_.cu_q, b + 1);
    if (row < 0 || end < row || end > batch_.tokens)
      throw ArgumentError(
          fmt::format("batch.cu_q: found rows {} to {} for sequence {}, expected an ascending range up "
                      "to {}, the step's tokens",
                      row, end, b, batch_.tokens));
    const std::int64_t length = at(host_.lengths, slot), after = length + end - row;
    if (length < 0)
      throw ArgumentError(fmt::format("batch.lengths: found {} for sequence {}, expected at least 0", length, b));
    if (after > plan_.options.max_length)
      throw ArgumentError(
          fmt::format("batch.lengths: found {} tokens after the step for sequence {} (slot {}), expected "
                      "at most {}, max_length",
                      after, b, slot, plan_.options.max_length));
    return {b, slot, length, after};
  }

  void check_pages(const Sequence& sequence) {
    for (const CachePart part : enum_values<CachePart>) {
      if (plan_.layout.pages_with(part) != part) continue;
      const PageTable& table = table_of(plan_, part, batch_);
      const std::int64_t columns = plan_.layout.pages_of(part, sequence.end, plan_.rank);
      if (columns > table.columns)
        throw ArgumentError(
            fmt::format("batch.{}: found a table of {} columns, expected at least {} for the {} tokens "
                        "of sequence {} (slot {})",
                        name_of(part), table.columns, columns, sequence.end, sequence.index, sequence.slot));
      for (std::int64_t column = first_column(part, sequence.length); column < columns; ++column)
        check_page(sequence, part, table, column, written_from(part, sequence) <= column);
    }
  }

  void check_page(const Sequence& sequence, CachePart part, const PageTable& table, std::int64_t column, bool writes) {
    const std::int64_t id = at(at(host_.tables, part), sequence.slot * table.columns + column);
    if (id < 0 || id >= table.pool_pages)
      throw ArgumentError(
          fmt::format("batch.{}: found page {} in column {} of sequence {} (slot {}, {} tokens after "
                      "the step), expected 0 to {}",
                      name_of(part), id, column, sequence.index, sequence.slot, sequence.end, table.pool_pages - 1));
    at(users_, part).push_back({id, sequence.index, column, writes});
  }

  /// The first column of the rank's table that a step at `length` reads.
  std::int64_t first_column(CachePart part, std::int64_t length) const {
    const std::int64_t page = plan_.layout.first_token(part, length) / plan_.layout.page();
    const int ranks = plan_.layout.ranks_of(part), rank = ranks == 1 ? 0 : plan_.rank;
    return page > rank ? (page - rank + ranks - 1) / ranks : 0;
  }

  /// The first column of the rank's table that a step of the sequence writes.
  std::int64_t written_from(CachePart part, const Sequence& sequence) const {
    return plan_.layout.shareable_pages(part, sequence.length, plan_.rank);
  }

  /// A page that one sequence writes must not be another's.
  void check_writers() {
    for (const CachePart part : enum_values<CachePart>) {
      std::vector<Use>& users = at(users_, part);
      std::sort(users.begin(), users.end(), [](const Use& a, const Use& b) {
        return std::tie(a.page, a.sequence, a.column) < std::tie(b.page, b.sequence, b.column);
      });
      for (std::size_t i = 1; i < users.size(); ++i) {
        const Use &a = users[i - 1], &b = users[i];
        if (a.page == b.page && (a.writes || b.writes))
          throw ArgumentError(
              fmt::format("batch.{}: found page {} in sequences {} (column {}) and {} (column {}), of "
                          "which one writes it; expected pages of their own",
                          name_of(part), a.page, a.sequence, a.column, b.sequence, b.column));
      }
    }
  }

  struct Use {
    std::int64_t page, sequence, column;
    bool writes;
  };

  const DecodePlan& plan_;
  const DecodeBatch& batch_;
  const HostBatch& host_;
  std::array<std::vector<Use>, 4> users_;
};

/// The numbers that all ranks must have in common: those of the sequences, not the pages.
std::string describe(const DecodeBatch& batch, const HostBatch& host) {
  std::string text = fmt::format("sequences={} tokens={}", batch.sequences, batch.tokens);
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    const std::int64_t slot = batch.slots ? at(host.slots, b) : b;
    text += fmt::format(" sequence{}={}+{}@{}", b, at(host.lengths, slot), at(host.cu_q, b + 1) - at(host.cu_q, b),
                        at(host.cu_q, b));
  }
  return text;
}

}  // namespace

std::string read_batch(const DecodePlan& plan, Device& device, Communicator& communicator, const DecodeBatch& batch,
                       Stream stream) {
  HostBatch host;
  const auto read = [&](const std::int32_t* source, std::int64_t count, Numbers& destination) {
    destination.resize(to_size(count));
    device.copy(destination.data(), source, destination.size() * sizeof(std::int32_t), stream);
  };
  if (batch.slots) read(batch.slots, batch.sequences, host.slots);
  read(batch.lengths, batch.num_slots, host.lengths);
  read(batch.cu_q, batch.sequences + 1, host.cu_q);
  for (const CachePart part : enum_values<CachePart>)
    if (plan.layout.pages_with(part) == part)
      read(table_of(plan, part, batch).pages, batch.num_slots * table_of(plan, part, batch).columns,
           at(host.tables, part));
  communicator.wait(device, stream);
  BatchChecks(plan, batch, host).run();
  return describe(batch, host);
}

}  // namespace cpnsa
