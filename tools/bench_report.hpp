#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/step_record.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// The columns of the table; several of the library's stages may share one.
enum class Column { compress, compressed, importance, exchange, selected, window, gate };
constexpr auto names_of(Column) {
  return std::to_array<std::string_view>(
      {"compress", "compressed", "importance", "exchange", "selected", "window", "gate"});
}
inline constexpr std::size_t column_count = enum_names<Column>.size();
Column column_of(Stage);
bool is_backward(Traffic);

/// One pass (forward or backward) over one length.
struct BenchPass {
  std::array<double, column_count> seconds{};  ///< by Column, medians over iterations of the slowest rank
  double total_seconds = 0;                    ///< measured without the stages' events
  double flop = 0;                             ///< of all ranks
  std::int64_t bytes_received = 0;             ///< of all ranks
  std::int64_t max_bytes_received = 0;         ///< of the rank that receives the most

  void add_rank(std::int64_t bytes) {
    bytes_received += bytes, max_bytes_received = std::max(max_bytes_received, bytes);
  }
  /// The bytes that a rank receives over the time of its exchange; 0 where nothing is received.
  double bytes_per_second() const;
};

/// One length.
struct BenchRow {
  std::int64_t tokens = 0;
  BenchPass forward;
  BenchPass backward;
  std::int64_t tensor_bytes = 0;     ///< most of a rank: the caller's tensors
  std::int64_t workspace_bytes = 0;  ///< most of a rank: beyond the caller's tensors
  std::int64_t saved_bytes = 0;      ///< most of a rank: of those, what a forward keeps for its backward
  std::int64_t blocks_needed = 0;    ///< of all ranks
  std::int64_t blocks_fetched = 0;   ///< of all ranks
  Exchange exchange = Exchange::fetch;
  int input_sets = 1;
  double distinct_blocks_per_16 = 0;  ///< mean number of different blocks that 16 neighbouring queries selected
  double picks_per_16 = 0;            ///< mean number of blocks that they selected, counted a query at a time
  std::vector<StepRecord> records;    ///< by rank, of the last step whose stages were timed
};

/// The setting of a run, for the table's head and the JSON file.
struct BenchSetting {
  BenchOptions options;  ///< with every default decided
  int ranks = 1;
  std::string device;
  std::string hardware;
  std::string transport;
  DType dtype = DType::f32;
  std::vector<std::string> hosts;  ///< of the ranks
};

/// Floating-point operations of the matrix products that the algorithm takes for documents within these bounds: 2 a
/// multiply-add. The backward is counted as 2.5 times the three branches (five products for two) and twice the
/// compressor.
double forward_flop(const Config& config, std::span<const std::int64_t> cu_seqlens);
double backward_flop(const Config& config, std::span<const std::int64_t> cu_seqlens);

/// The keys that the reports of `bench` and `bench --decode` begin with: provenance, ranks, device, hardware,
/// transport, dtype.
nlohmann::ordered_json setting_json(const BenchSetting& setting);

std::string table_head(const BenchSetting& setting);
std::string table_row(const BenchRow& row, bool backward);
std::string json_of(const BenchSetting& setting, const std::vector<BenchRow>& rows);

}  // namespace cpnsa::tool
