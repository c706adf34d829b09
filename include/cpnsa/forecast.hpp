#pragma once

// The memory and the time of a layer on a number of ranks, computed without running it: `cpnsa plan` and the function
// forecast() of Python. docs/planning.md describes the model and compares it with measurements.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/partition.hpp"

namespace cpnsa {

/// The kinds of computation whose time is forecast; the columns of `cpnsa bench`.
enum class WorkKind { compress, compressed, importance, selected, window, gate };
constexpr auto names_of(WorkKind) {
  return std::to_array<std::string_view>({"compress", "compressed", "importance", "selected", "window", "gate"});
}
inline constexpr std::size_t work_kinds = enum_names<WorkKind>.size();
using ByWork = std::array<double, work_kinds>;

/// The blocks that queries choose besides the forced ones. random: independent, uniform ones. local: runs of 64 queries
/// share theirs, and each 16 queries add the number that random inputs of `cpnsa bench --selection local` add.
enum class PickPattern { random, local };
constexpr auto names_of(PickPattern) {
  return std::to_array<std::string_view>({"random", "local"});
}

/// Seconds of each kind of work of one rank that is alone, at one length.
struct MeasuredLength {
  std::int64_t tokens;
  ByWork forward;
  ByWork backward;
};

/// The times of a layer on a GPU: measurements at ascending lengths, of one document on one rank, and of the
/// configuration that they were made with. Between the lengths, rates are interpolated; beyond them the last one holds.
struct ComputeModel {
  std::string name;
  std::string source;  ///< where the measurements are from
  Config config;
  std::vector<MeasuredLength> lengths;  ///< empty: times are not forecast
  std::size_t memory_bytes = 0;         ///< of the GPU, without what CUDA and NCCL take; 0 if not known
};

/// The times of moving bytes. Bandwidths are of one rank and one direction.
struct NetworkModel {
  std::string name;
  std::string source;
  int ranks_per_node = 8;
  double node_bytes_per_second = 0;  ///< between ranks of one node
  double wide_bytes_per_second = 0;  ///< between nodes
  double node_seconds = 0;           ///< of a message without bytes
  double wide_seconds = 0;
};

/// The built-in models: "h200", "h100", for queries that choose so, and their network: NVLink in nodes of 8, 400 Gb/s
/// per GPU between them. Throws ArgumentError for other names.
ComputeModel built_in_compute(std::string_view name, PickPattern picks = PickPattern::random);
NetworkModel built_in_network();

struct MemoryPart {
  std::string name;
  std::size_t bytes;
};

/// One rank of a layer.
struct RankForecast {
  int rank = 0;
  std::int64_t rows = 0;
  std::vector<MemoryPart> saved;     ///< parts of Attention::saved_bytes()
  std::vector<MemoryPart> forward;   ///< parts of the workspace in a forward
  std::vector<MemoryPart> backward;  ///< parts of the workspace in a backward; shares the forward's memory
  std::size_t saved_bytes = 0;       ///< Attention::saved_bytes()
  std::size_t workspace_bytes = 0;   ///< Attention::workspace_bytes()
  std::size_t list_bytes = 0;        ///< index lists that the layer allocates itself
  std::size_t scratch_bytes = 0;     ///< part of the workspace
  std::array<std::int64_t, traffic_kinds> bytes_received{};  ///< of a forward and its backward, without control
  std::int64_t blocks_needed = 0;
  std::int64_t blocks_fetched = 0;
  ByWork forward_work{};  ///< floating-point operations; gate: elements of out
  ByWork backward_work{};
  ByWork forward_compute{};  ///< seconds; zero without measurements
  ByWork backward_compute{};
  double forward_wire = 0;  ///< seconds that its bytes take, hidden behind computation or not
  double backward_wire = 0;
  double forward_seconds = 0;  ///< with the part of the wire that nothing hides
  double backward_seconds = 0;

  std::size_t layer_bytes() const {
    return saved_bytes + workspace_bytes + list_bytes;
  }  ///< Statistics::workspace_bytes
};

struct ForecastOptions {
  AttentionOptions attention;
  PickPattern picks = PickPattern::random;
  std::uint64_t seed = 1;  ///< of the sampled picks
  /// The device whose scratch memory counts. Without one, that of a GPU is estimated (see LayerForecast).
  Device* device = nullptr;
  int max_ranks = 8;  ///< ranks that are forecast, the first and the last among them; the others lie between
};

struct LayerForecast {
  int ranks = 0;
  Exchange exchange = Exchange::fetch;  ///< never automatic
  bool scratch_estimated = false;       ///< whether scratch_bytes is no device's own number
  std::vector<RankForecast> of_ranks;
  std::size_t max_layer_bytes = 0;  ///< of the forecast ranks
  std::size_t max_saved_bytes = 0;
  std::size_t max_workspace_bytes = 0;
  double forward_seconds = 0;  ///< of the slowest rank
  double backward_seconds = 0;
  double compute_seconds = 0;  ///< of that rank, both passes
  double exposed_seconds = 0;  ///< wire time that nothing hides, both passes
};

/// Plans the layer on the ranks of `partition` and on no device. Throws what the constructor of Attention throws for
/// such a configuration.
LayerForecast forecast(const Config& config, const Partition& partition, const ForecastOptions& options,
                       const ComputeModel& compute, const NetworkModel& network);

}  // namespace cpnsa
