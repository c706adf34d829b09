#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpnsa/decoder.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/kv_cache.hpp"

namespace cpnsa {

/// A page of one layer's pools that is to be copied to another.
struct PageCopy {
  CachePart part;
  std::int32_t from;
  std::int32_t to;
};

/// Hands out the pages of a rank's pools to sequences and writes their page tables, in host memory. One allocator
/// serves all layers, whose pools have the same numbers of pages. A convenience: a caller with tables of its own does
/// without.
///
/// Sequences are slots: rows of the tables. A page is in use until the last sequence that has it gives it back.
class PageAllocator {
 public:
  /// `slots` sequences of up to `max_length` tokens; `pages` in the pools of `rank`. Pages are handed out in ascending
  /// order, or in an order drawn with `seed`. Errors: ArgumentError.
  PageAllocator(const KvCacheLayout& layout, int rank, const PageCounts& pages, std::int64_t slots,
                std::int64_t max_length, std::optional<std::uint64_t> seed = std::nullopt);

  /// The pages that one sequence of `length` tokens needs at most.
  static PageCounts pages_for(const KvCacheLayout& layout, int rank, std::int64_t length);

  /// Gives the sequence the pages that it lacks for `length` tokens. ArgumentError if the pools have too few left, and
  /// then nothing has changed.
  void reserve(std::int64_t slot, std::int64_t length);
  /// Takes back all pages of a sequence that has ended.
  void release(std::int64_t slot);
  /// Takes back the pages that the sequence does not need for `length` tokens, to which it is cut back. A shared page
  /// that its next step writes is replaced by a page of its own; returns those pages, to be copied as for fork().
  [[nodiscard]] std::vector<PageCopy> cut(std::int64_t slot, std::int64_t length);
  /// Takes back the pages of the compressed and the window branch that no step at `length` or later reads. Only for
  /// sequences that are not cut back below `length`.
  void drop_before(std::int64_t slot, std::int64_t length);
  /// Makes the empty sequence `to` begin with the first `tokens` tokens of `from`, whose length is at least as much:
  /// shares the pages that depend on no later token, and reserves others for the rest. Returns the pages whose content
  /// the caller copies in every layer's cache (copy_pages) before a step of either sequence.
  [[nodiscard]] std::vector<PageCopy> fork(std::int64_t from, std::int64_t to, std::int64_t tokens);

  std::int64_t slots() const { return slots_; }
  std::int64_t columns(CachePart part) const;
  std::int64_t free_pages(CachePart part) const;
  /// [slots, columns(part)], -1 where there is no page.
  const std::vector<std::int32_t>& table(CachePart part) const;
  /// The table as a batch names it, with its copy in device memory.
  PageTable on_device(CachePart part, const std::int32_t* device_table) const;

 private:
  struct Pool {
    std::int64_t columns = 0;
    std::int64_t pages = 0;
    std::vector<std::int32_t> free;    ///< the next one is last
    std::vector<std::int32_t> users;   ///< of each page
    std::vector<std::int32_t> table;   ///< [slots, columns]
    std::vector<std::int32_t> filled;  ///< columns of each slot that have been filled
  };

  void check_slot(std::int64_t slot) const;
  Pool& pool(CachePart part);
  const Pool& pool(CachePart part) const;
  std::int32_t& entry(Pool& pool, std::int64_t slot, std::int64_t column);
  std::int32_t take(CachePart part, Pool& pool);
  void give_back(Pool& pool, std::int32_t& page);

  KvCacheLayout layout_;
  int rank_;
  std::int64_t slots_;
  std::int64_t max_length_;
  std::array<Pool, 4> pools_;  ///< by CachePart; without pages where a part shares another's
};

/// Copies pages within one layer's cache. Enqueues on the stream.
void copy_pages(const KvCacheLayout& layout, const KvCache& cache, const std::vector<PageCopy>& copies, Device& device,
                Stream stream);

}  // namespace cpnsa
