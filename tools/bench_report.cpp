#include "tools/bench_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>

#include "cpnsa/schema.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

double mebibytes(std::int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

struct BranchFlop {
  double branches;    // compressed, selected and window
  double importance;  // the scores once more
  double compressor;
};

BranchFlop count_flop(const Config& config, std::int64_t tokens) {
  // (query, key) pairs of each branch, for one head.
  double compressed = 0, selected = 0, window = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t blocks = t / config.select_block + 1;
    compressed += static_cast<double>(config.summaries_of(t + 1));
    selected += static_cast<double>(blocks <= config.select_count ? t + 1
                                                                  : (config.select_count - 1) * config.select_block +
                                                                        t % config.select_block + 1);
    window += static_cast<double>(std::min(t + 1, config.window));
  }
  const auto heads = static_cast<double>(config.num_q_heads), dim_k = static_cast<double>(config.head_dim_qk),
             dim_v = static_cast<double>(config.head_dim_v);
  BranchFlop flop{2 * heads * (dim_k + dim_v) * (compressed + selected + window), 2 * heads * dim_k * compressed, 0};

  const double summaries = static_cast<double>(config.summaries_of(tokens) * config.num_kv_heads);
  const auto block = static_cast<double>(config.compress_block);
  const auto add = [&](double dim, std::int64_t hidden_size) {
    const auto hidden = static_cast<double>(hidden_size);
    if (config.compressor == Compressor::linear) flop.compressor += 2 * summaries * block * dim * dim;
    if (config.compressor == Compressor::mlp) flop.compressor += 2 * summaries * (block * dim * hidden + hidden * dim);
  };
  add(dim_k, config.compress_hidden_k);
  add(dim_v, config.compress_hidden_v);
  return flop;
}

BranchFlop count_flop(const Config& config, std::span<const std::int64_t> cu_seqlens) {
  BranchFlop sum{0, 0, 0};
  for (std::size_t document = 1; document < cu_seqlens.size(); ++document) {
    const BranchFlop flop = count_flop(config, cu_seqlens[document] - cu_seqlens[document - 1]);
    sum.branches += flop.branches, sum.importance += flop.importance, sum.compressor += flop.compressor;
  }
  return sum;
}

std::string pass_row(const BenchRow& row, const BenchPass& pass, const char* name, bool has_importance) {
  std::string text = fmt::format("{:>9} {:>5}", row.tokens, name);
  for (std::size_t column = 0; column < column_count; ++column) {
    const bool empty = static_cast<Column>(column) == Column::importance && !has_importance;
    text += empty ? fmt::format(" {:>10}", "-") : fmt::format(" {:>10.3f}", 1e3 * pass.seconds[column]);
  }
  return text + fmt::format(" {:>10.3f} {:>9.3f} {:>10.2f} {:>9} {:>10.1f}\n", 1e3 * pass.total_seconds,
                            pass.flop / pass.total_seconds * 1e-12, mebibytes(pass.bytes_received),
                            pass.bytes_per_second() > 0 ? fmt::format("{:.2f}", 1e-9 * pass.bytes_per_second()) : "-",
                            mebibytes(row.tensor_bytes + row.workspace_bytes));
}

ordered_json json_of(const BenchPass& pass) {
  ordered_json stages = ordered_json::object();
  for (std::size_t column = 0; column < column_count; ++column)
    stages[std::string(name_of(static_cast<Column>(column)))] = pass.seconds[column];
  return {{"seconds", pass.total_seconds},
          {"stage_seconds", stages},
          {"flop", pass.flop},
          {"tflops_per_second", pass.flop / pass.total_seconds * 1e-12},
          {"bytes_received", pass.bytes_received},
          {"max_bytes_received", pass.max_bytes_received},
          {"bytes_per_second_per_rank", pass.bytes_per_second()}};
}

// Without the spans, which are many: --trace writes those.
ordered_json json_of(const std::vector<StepRecord>& records) {
  ordered_json by_rank = ordered_json::parse(cpnsa::json_of(records));
  for (ordered_json& record : by_rank) record.erase("spans");
  return by_rank;
}

ordered_json json_of(const Config& config) {
  ordered_json object = ordered_json::object();
  schema::for_each_key(config, [&](const schema::ConfigKey& key, const auto& value) {
    ordered_json& entry = object[std::string(key.name)];
    if constexpr (NamedEnum<std::remove_cvref_t<decltype(value)>>)
      entry = std::string(name_of(value));
    else if constexpr (std::is_same_v<decltype(value), const std::optional<double>&>)
      entry = config.scale();
    else
      entry = value;
  });
  return object;
}

}  // namespace

Column column_of(Stage stage) {
  switch (stage) {
    case Stage::compress:
    case Stage::compress_backward: return Column::compress;
    case Stage::compressed:
    case Stage::compressed_backward: return Column::compressed;
    case Stage::select: return Column::importance;
    case Stage::selected:
    case Stage::selected_backward: return Column::selected;
    case Stage::window:
    case Stage::window_backward: return Column::window;
    case Stage::combine:
    case Stage::combine_backward:
    case Stage::finish_gradients: return Column::gate;
    case Stage::exchange_halo:
    case Stage::gather_summaries:
    case Stage::demand:
    case Stage::fetch_blocks:
    case Stage::refetch_blocks:
    case Stage::return_block_gradients:
    case Stage::reduce_summary_gradients:
    case Stage::return_halo_gradients: return Column::exchange;
  }
  return Column::exchange;
}

double BenchPass::bytes_per_second() const {
  const double exchange = seconds[static_cast<std::size_t>(Column::exchange)];
  return max_bytes_received > 0 && exchange > 0 ? static_cast<double>(max_bytes_received) / exchange : 0;
}

bool is_backward(Traffic traffic) {
  return traffic == Traffic::refetched_blocks || traffic == Traffic::block_gradients ||
         traffic == Traffic::summary_gradients || traffic == Traffic::halo_gradients ||
         traffic == Traffic::parameter_gradients;
}

double forward_flop(const Config& config, std::span<const std::int64_t> cu_seqlens) {
  const BranchFlop flop = count_flop(config, cu_seqlens);
  return flop.branches + flop.importance + flop.compressor;
}

double backward_flop(const Config& config, std::span<const std::int64_t> cu_seqlens) {
  const BranchFlop flop = count_flop(config, cu_seqlens);
  return 2.5 * flop.branches + 2 * flop.compressor;
}

std::string table_head(const BenchSetting& setting) {
  const BenchOptions& options = setting.options;
  std::string text = fmt::format(
      "# cpnsa bench: {} rank{} ({}), {} ({}), {}, partition {}, selection {}, {} document{} a row, {} iterations "
      "after {} "
      "warm-ups\n"
      "# {}\n"
      "# times in ms: median over iterations of the slowest rank; TFLOP/s and moved MiB: all ranks; GB/s and peak "
      "MiB: one rank\n"
      "{:>9} {:>5}",
      setting.ranks, setting.ranks == 1 ? "" : "s", setting.transport, setting.device, setting.hardware,
      name_of(setting.dtype), name_of(options.execution.partition), name_of(options.selection), options.documents,
      options.documents == 1 ? "" : "s", *options.iterations, *options.warmups, options.config.describe(), "# tokens",
      "pass");
  for (std::size_t column = 0; column < column_count; ++column)
    text += fmt::format(" {:>10}", static_cast<Column>(column) == Column::importance
                                       ? "imp.+topk"
                                       : name_of(static_cast<Column>(column)));
  return text +
         fmt::format(" {:>10} {:>9} {:>10} {:>9} {:>10}\n", "total", "TFLOP/s", "moved MiB", "GB/s rank", "peak MiB");
}

std::string table_row(const BenchRow& row, bool backward) {
  std::string text = pass_row(row, row.forward, "fwd", true);
  if (backward) text += pass_row(row, row.backward, "bwd", false);
  return text;
}

ordered_json setting_json(const BenchSetting& setting) {
  ordered_json report;
  report["provenance"] = provenance_json(setting.hosts);
  report["ranks"] = setting.ranks;
  report["device"] = setting.device;
  report["hardware"] = setting.hardware;
  report["transport"] = setting.transport;
  report["dtype"] = std::string(name_of(setting.dtype));
  return report;
}

std::string json_of(const BenchSetting& setting, const std::vector<BenchRow>& rows) {
  const BenchOptions& options = setting.options;
  ordered_json report = setting_json(setting);
  report["partition"] = std::string(name_of(options.execution.partition));
  report["exchange"] = std::string(name_of(options.execution.exchange));
  report["selection"] = std::string(name_of(options.selection));
  report["iterations"] = *options.iterations;
  report["warmups"] = *options.warmups;
  report["documents"] = options.documents;
  report["seed"] = options.seed;
  report["separate_kv"] = options.separate_kv;
  report["keep_blocks"] = options.execution.keep_blocks;
  report["recompute_branches"] = options.execution.recompute_branches;
  report["config"] = json_of(options.config);
  report["rows"] = ordered_json::array();
  for (const BenchRow& row : rows) {
    ordered_json entry;
    entry["tokens"] = row.tokens;
    entry["exchange"] = std::string(name_of(row.exchange));
    entry["forward"] = json_of(row.forward);
    if (options.execution.backward) entry["backward"] = json_of(row.backward);
    entry["tensor_bytes"] = row.tensor_bytes;
    entry["workspace_bytes"] = row.workspace_bytes;
    entry["saved_bytes"] = row.saved_bytes;
    entry["blocks_needed"] = row.blocks_needed;
    entry["blocks_fetched"] = row.blocks_fetched;
    entry["input_sets"] = row.input_sets;
    entry["distinct_blocks_per_16_queries"] = row.distinct_blocks_per_16;
    entry["picks_per_16_queries"] = row.picks_per_16;
    entry["by_rank"] = json_of(row.records);
    report["rows"].push_back(entry);
  }
  return report.dump(2) + "\n";
}

}  // namespace cpnsa::tool
