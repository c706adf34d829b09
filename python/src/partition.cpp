#include "cpnsa/partition.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>

#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

using Bounds = std::vector<std::int64_t>;
using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;

void check_rank(const Partition& partition, int rank) {
  if (rank < 0 || rank >= partition.ranks())
    throw ArgumentError(fmt::format("rank: found {}, expected 0 <= rank < {}", rank, partition.ranks()));
}

void check_ranks(int ranks) {
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected at least 1", ranks));
}

const char* made_how(PartitionKind kind) {
  switch (kind) {
    case PartitionKind::contiguous: return "Rank after rank, as even as whole blocks allow.";
    case PartitionKind::zigzag: return "The packed sequence in 2P chunks; rank r owns chunks r and 2P - 1 - r.";
    case PartitionKind::zigzag_per_document: return "Every document in 2P chunks of its own.";
  }
  return "";
}

// int64 [n] that owns its memory and hands it on as DLPack.
nb::ndarray<nb::array_api, std::int64_t, nb::ndim<1>, nb::device::cpu> owned(std::vector<std::int64_t> values) {
  auto kept = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  auto* const data = kept->data();
  const std::size_t count = kept->size();
  const nb::capsule owner(kept.release(), [](void* p) noexcept { delete static_cast<std::vector<std::int64_t>*>(p); });
  return {data, {count}, owner};
}

}  // namespace

void bind_partition(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Partition> type(
      module, "Partition",
      "Which rank owns which tokens of a packed sequence: for each rank an ordered list of ranges "
      "whose bounds are selection-block boundaries of their documents, or documents' ends.");
  for (const PartitionKind kind : enum_values<PartitionKind>)
    type.def_static(
        name_of(kind).data(),
        [kind](const Bounds& cu_seqlens, std::int64_t select_block, int ranks) {
          check_ranks(ranks);
          return Partition::make(kind, cu_seqlens, select_block, ranks);
        },
        "cu_seqlens"_a, "select_block"_a, "ranks"_a, made_how(kind));
  type.def_static(
          "custom",
          [](const Bounds& cu_seqlens, std::int64_t select_block, const std::vector<Pairs>& ranges) {
            std::vector<std::vector<TokenRange>> owned_ranges(ranges.size());
            for (std::size_t rank = 0; rank < ranges.size(); ++rank)
              for (const auto& [begin, end] : ranges[rank]) owned_ranges[rank].push_back({begin, end});
            return Partition::custom(cu_seqlens, select_block, std::move(owned_ranges));
          },
          "cu_seqlens"_a, "select_block"_a, "ranges"_a, "ranges[r] are rank r's [(begin, end), ...].")
      .def_prop_ro("ranks", &Partition::ranks)
      .def_prop_ro("tokens", &Partition::tokens)
      .def_prop_ro("select_block", &Partition::select_block)
      .def_prop_ro("cu_seqlens",
                   [](const Partition& self) { return Bounds(self.cu_seqlens().begin(), self.cu_seqlens().end()); })
      .def(
          "ranges",
          [](const Partition& self, int rank) {
            check_rank(self, rank);
            Pairs pairs;
            for (const TokenRange& range : self.ranges(rank)) pairs.emplace_back(range.begin, range.end);
            return pairs;
          },
          "rank"_a)
      .def(
          "local_tokens",
          [](const Partition& self, int rank) {
            check_rank(self, rank);
            return self.local_tokens(rank);
          },
          "rank"_a)
      .def(
          "global_rows",
          [](const Partition& self, int rank) {
            check_rank(self, rank);
            return owned(self.global_rows(rank));
          },
          "rank"_a, "The global token that each of the rank's local rows is: int64 [local_tokens], a DLPack array.")
      .def("__repr__", [](const Partition& self) {
        return fmt::format("cpnsa.Partition(tokens={}, documents={}, ranks={}, select_block={})", self.tokens(),
                           self.cu_seqlens().size() - 1, self.ranks(), self.select_block());
      });
}

}  // namespace cpnsa::python
