#include "cpnsa/partition.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "c/objects.hpp"
#include "c/parameters.hpp"

using namespace cpnsa::c;
using cpnsa::ArgumentError;
using cpnsa::Partition;

namespace {

std::span<const std::int64_t> documents(const int64_t* cu_seqlens, size_t bounds) {
  return {&not_null(cu_seqlens, "cu_seqlens"), bounds};
}

void check_ranks(int ranks) {
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected 1 at least", ranks));
}

std::shared_ptr<const Partition> find(cpnsa_partition handle, int rank) {
  auto partition = partitions().find(handle);
  if (rank < 0 || rank >= partition->ranks())
    throw ArgumentError(fmt::format("rank: found {}, expected 0 to {}", rank, partition->ranks() - 1));
  return partition;
}

void check_capacity(size_t capacity, size_t needed) {
  if (capacity < needed) throw ArgumentError(fmt::format("capacity: found {}, expected {} at least", capacity, needed));
}

}  // namespace

cpnsa_status cpnsa_partition_create(int32_t kind, const int64_t* cu_seqlens, size_t bounds, int64_t select_block,
                                    int ranks, cpnsa_partition* out) {
  return guarded(__func__, [&] {
    create(partitions(), out, "partition", [&] {
      check_ranks(ranks);
      return std::make_shared<const Partition>(Partition::make(to_enum<cpnsa::PartitionKind>(kind, "kind"),
                                                               documents(cu_seqlens, bounds), select_block, ranks));
    });
  });
}

cpnsa_status cpnsa_partition_create_custom(const int64_t* cu_seqlens, size_t bounds, int64_t select_block, int ranks,
                                           const cpnsa_range* ranges, const size_t* range_counts,
                                           cpnsa_partition* out) {
  return guarded(__func__, [&] {
    create(partitions(), out, "partition", [&] {
      check_ranks(ranks);
      not_null(range_counts, "range_counts");
      not_null(ranges, "ranges");
      std::vector<std::vector<cpnsa::TokenRange>> owned(static_cast<size_t>(ranks));
      for (std::vector<cpnsa::TokenRange>& own : owned)
        for (size_t left = *range_counts++; left > 0; --left, ++ranges) own.push_back({ranges->begin, ranges->end});
      return std::make_shared<const Partition>(
          Partition::custom(documents(cu_seqlens, bounds), select_block, std::move(owned)));
    });
  });
}

cpnsa_status cpnsa_partition_tokens(cpnsa_partition partition, int rank, int64_t* tokens) {
  return guarded(__func__, [&] { not_null(tokens, "tokens") = find(partition, rank)->local_tokens(rank); });
}

cpnsa_status cpnsa_partition_global_rows(cpnsa_partition partition, int rank, int64_t* tokens, size_t capacity) {
  return guarded(__func__, [&] {
    const std::vector<std::int64_t> rows = find(partition, rank)->global_rows(rank);
    check_capacity(capacity, rows.size());
    if (!rows.empty()) std::copy(rows.begin(), rows.end(), &not_null(tokens, "tokens"));
  });
}

cpnsa_status cpnsa_partition_ranges(cpnsa_partition partition, int rank, cpnsa_range* ranges, size_t capacity,
                                    size_t* count) {
  return guarded(__func__, [&] {
    const auto found = find(partition, rank);
    const std::span own = found->ranges(rank);
    not_null(count, "count") = own.size();
    if (!ranges) return;
    check_capacity(capacity, own.size());
    std::transform(own.begin(), own.end(), ranges, [](const cpnsa::TokenRange& range) {
      return cpnsa_range{range.begin, range.end};
    });
  });
}

cpnsa_status cpnsa_partition_scatter(cpnsa_partition partition, int rank, const void* packed, void* local,
                                     size_t row_bytes) {
  return guarded(__func__, [&] {
    const auto found = find(partition, rank);
    if (row_bytes == 0 || found->local_tokens(rank) == 0) return;
    not_null(static_cast<const char*>(packed), "packed");
    found->scatter(packed, &not_null(static_cast<char*>(local), "local"), rank, row_bytes);
  });
}

cpnsa_status cpnsa_partition_gather(cpnsa_partition partition, int rank, const void* local, void* packed,
                                    size_t row_bytes) {
  return guarded(__func__, [&] {
    const auto found = find(partition, rank);
    if (row_bytes == 0 || found->local_tokens(rank) == 0) return;
    not_null(static_cast<const char*>(local), "local");
    found->gather(local, &not_null(static_cast<char*>(packed), "packed"), rank, row_bytes);
  });
}

cpnsa_status cpnsa_partition_destroy(cpnsa_partition partition) {
  return guarded(__func__, [&] { partitions().remove(partition); });
}
