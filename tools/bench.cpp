#include "tools/bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>

#include "cpnsa/error.hpp"
#include "tools/bench_decode.hpp"
#include "tools/bench_inputs.hpp"
#include "tools/bench_report.hpp"
#include "tools/bench_samples.hpp"
#include "tools/execution.hpp"
#include "tools/host_memory.hpp"
#include "tools/json_output.hpp"
#include "tools/layer_memory.hpp"
#include "tools/progress.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

void set_default(std::int64_t& value, std::int64_t fallback) {
  if (value == 0) value = fallback;
}

std::vector<std::int64_t> document_bounds(std::int64_t tokens, std::int64_t documents) {
  std::vector<std::int64_t> bounds;
  for (std::int64_t i = 0; i <= documents; ++i)
    bounds.push_back(tokens / documents * i + tokens % documents * i / documents);
  return bounds;
}

/// Everything but the times that a rank measures at one length.
struct RankFacts {
  Statistics statistics;
  std::int64_t tensor_bytes = 0;
  std::int64_t saved_bytes = 0;
  std::int64_t groups_of_16 = 0;
  std::int64_t distinct_blocks = 0;
  std::int64_t picks = 0;
};

/// One rank's measurement of one length.
class LengthBench {
 public:
  /// Throws ArgumentError where the inputs of `local_ranks` ranks do not fit into the memory of this host.
  LengthBench(const BenchSetting& setting, std::int64_t tokens, Execution& execution, Communicator& control,
              int local_ranks)
      : options_(setting.options),
        config_(setting.options.config),
        tokens_(tokens),
        execution_(execution),
        device_(execution.device()),
        control_(control),
        stream_(device_),
        staging_(device_, stream_.get()),
        partition_(Partition::make(options_.execution.partition, document_bounds(tokens, options_.documents),
                                   config_.select_block, control.size())) {
    if (device_.host_accessible()) check_host_memory(local_ranks, input_bytes());
  }

  /// Collective.
  void make_inputs(const BenchInputs& inputs) {
    agree_on(control_, "allocate inputs", [&] { allocate(inputs); });
  }

  BenchRow measure() {
    BenchRow row;
    row.tokens = tokens_;
    row.input_sets = static_cast<int>(sets_.size());
    const std::vector<double> totals = time_steps(false).slowest_medians(control_);
    row.forward.total_seconds = totals[0];
    row.backward.total_seconds = totals[1];
    const std::vector<double> stages = time_steps(true).slowest_medians(control_);
    for (std::size_t column = 0; column < column_count; ++column) {
      row.forward.seconds[column] = stages[column];
      row.backward.seconds[column] = stages[column_count + column];
    }
    row.forward.flop = forward_flop(config_, partition_.cu_seqlens());
    row.backward.flop = backward_flop(config_, partition_.cu_seqlens());
    add_facts(row);
    return row;
  }

 private:
  void allocate(const BenchInputs& inputs) {
    const bool backward = options_.execution.backward;
    const std::vector<LayerTensor> tensors = layer_tensors(config_, tokens_, options_.separate_kv);
    const LayerTensor dout = dout_tensor(config_, tokens_);
    const DType dtype = execution_.dtype();
    for (std::size_t set = 0; set < input_sets(tensors); ++set) {
      sets_.push_back(std::make_unique<LayerMemory>(device_, dtype, dtype, partition_.local_tokens(control_.rank()),
                                                    config_, tensors, backward));
      inputs.fill(device_, stream_.get(), *sets_.back(), tensors, backward ? &dout : nullptr, partition_,
                  control_.rank(), set);
    }
  }

  // The bytes of all input sets of a rank, with their gradients.
  double input_bytes() const {
    const std::vector<LayerTensor> tensors = layer_tensors(config_, tokens_, options_.separate_kv);
    const auto rows = static_cast<double>(partition_.local_tokens(control_.rank()));
    double elements = 0;
    for (const LayerTensor& tensor : tensors) {
      double product = tensor.per_token ? rows / static_cast<double>(tokens_) : 1;
      for (const std::int64_t extent : tensor.extents()) product *= static_cast<double>(extent);
      elements += product;
    }
    const double copies = options_.execution.backward ? 2 : 1;
    return elements * copies * static_cast<double>(size_of(execution_.dtype()) * input_sets(tensors));
  }

  // Several sets, used in turn, unless one alone is far larger than any cache; as many on every rank.
  std::size_t input_sets(const std::vector<LayerTensor>& tensors) const {
    constexpr std::size_t beyond_caches = std::size_t{512} << 20, max_sets = 8;
    std::size_t row_bytes = 0;
    for (const LayerTensor& tensor : tensors)
      if (tensor.per_token)
        row_bytes += static_cast<std::size_t>(tensor.elements_per_row()) * size_of(execution_.dtype());
    const std::size_t rows = static_cast<std::size_t>(tokens_ / control_.size()) + 1;
    return std::clamp<std::size_t>(beyond_caches / (rows * row_bytes) + 1, 1, max_sets);
  }

  /// Runs warm-ups and iterations. Without `stages` a sample is {forward, backward}; with them it is the forward's
  /// columns, then the backward's.
  Samples time_steps(bool stages) {
    AttentionOptions options = options_.execution.attention_options(execution_.dtype());
    options.timing = stages;
    Attention attention(config_, partition_, device_, execution_.communicator(), options);
    std::optional<DeviceBuffer> workspace, saved_memory;
    std::optional<CacheFlush> flush;
    SavedForward saved;
    agree_on(control_, "allocate the workspace", [&] {
      flush.emplace(device_, stream_.get());
      workspace.emplace(device_, attention.workspace_bytes());
      saved_memory.emplace(device_, attention.saved_bytes());
      saved.memory = saved_memory->data();
    });

    Samples samples{stages ? 2 * column_count : 2, {}};
    const OwnedEvent begin(device_), middle(device_), end(device_);
    for (std::int64_t i = -*options_.warmups; i < *options_.iterations; ++i) {
      LayerMemory& set = *sets_[static_cast<std::size_t>(i + *options_.warmups) % sets_.size()];
      control_.barrier();
      flush->enqueue();
      device_.record(begin.get(), stream_.get());
      attention.forward(set.inputs(), set.out().view(), config_.has_branch(1) ? set.selected() : nullptr,
                        options.backward ? &saved : nullptr, workspace->data(), stream_.get());
      device_.record(middle.get(), stream_.get());
      if (options.backward)
        attention.backward(set.inputs(), set.dout().view(), saved, set.gradients(), workspace->data(), stream_.get());
      device_.record(end.get(), stream_.get());
      // A device's failure shows here, on the failing rank alone.
      agree_on(control_, "finish the step", [&] { execution_.communicator().wait(device_, stream_.get()); });
      if (i < 0) continue;
      if (stages) {
        add_stages(samples, attention.statistics());
      } else {
        samples.seconds.push_back(device_.seconds_between(begin.get(), middle.get()));
        samples.seconds.push_back(device_.seconds_between(middle.get(), end.get()));
      }
    }
    if (stages) record_ = attention.record();
    facts_.statistics = attention.statistics();
    facts_.saved_bytes = static_cast<std::int64_t>(attention.saved_bytes());
    return samples;
  }

  static void add_stages(Samples& samples, const Statistics& statistics) {
    std::array<double, 2 * column_count> columns{};
    for (std::size_t s = 0; s < stage_count; ++s) {
      const auto stage = static_cast<Stage>(s);
      columns[(is_backward(stage) ? column_count : 0) + static_cast<std::size_t>(column_of(stage))] +=
          statistics.seconds[s];
    }
    samples.seconds.insert(samples.seconds.end(), columns.begin(), columns.end());
  }

  // How much 16 neighbouring queries of a KV head share: what the selection's cost depends on.
  void measure_overlap() {
    if (!config_.has_branch(1)) return;
    constexpr std::int64_t neighbours = 16;
    const std::int64_t width = config_.num_kv_heads * config_.select_count;
    const std::size_t group_bytes = static_cast<std::size_t>(neighbours * width) * sizeof(std::int32_t);
    const std::int64_t groups = partition_.local_tokens(control_.rank()) / neighbours;
    staging_.download(
        sets_.front()->selected(), groups, group_bytes, [&](std::int64_t, std::int64_t count, const void* host) {
          const auto* selected = static_cast<const std::int32_t*>(host);
          for (std::int64_t group = 0; group < count * config_.num_kv_heads; ++group) {
            const std::int64_t head = group % config_.num_kv_heads, row = group / config_.num_kv_heads * neighbours;
            std::set<std::int32_t> distinct;
            for (std::int64_t query = row; query < row + neighbours; ++query)
              for (std::int64_t pick = 0; pick < config_.select_count; ++pick) {
                const std::int32_t block = selected[query * width + head * config_.select_count + pick];
                if (block < 0) continue;
                distinct.insert(block);
                ++facts_.picks;
              }
            facts_.distinct_blocks += static_cast<std::int64_t>(distinct.size());
            ++facts_.groups_of_16;
          }
        });
  }

  void add_facts(BenchRow& row) {
    agree_on(control_, "measure overlap", [&] { measure_overlap(); });
    facts_.tensor_bytes = static_cast<std::int64_t>(sets_.front()->bytes());
    std::vector<RankFacts> all(static_cast<std::size_t>(control_.size()));
    control_.all_gather_host(&facts_, all.data(), sizeof facts_);
    std::int64_t groups = 0, distinct = 0, picks = 0;
    for (const RankFacts& rank : all) {
      std::int64_t forward = 0, backward = 0;
      for (std::size_t t = 0; t < traffic_kinds; ++t)
        (is_backward(static_cast<Traffic>(t)) ? backward : forward) += rank.statistics.bytes_received[t];
      row.forward.add_rank(forward), row.backward.add_rank(backward);
      row.tensor_bytes = std::max(row.tensor_bytes, rank.tensor_bytes);
      row.workspace_bytes = std::max(row.workspace_bytes, rank.statistics.workspace_bytes);
      row.saved_bytes = std::max(row.saved_bytes, rank.saved_bytes);
      row.blocks_needed += rank.statistics.blocks_needed;
      row.blocks_fetched += rank.statistics.blocks_fetched;
      groups += rank.groups_of_16;
      distinct += rank.distinct_blocks;
      picks += rank.picks;
    }
    row.records = gather_records(record_, control_);
    row.exchange = all.front().statistics.exchange;
    row.distinct_blocks_per_16 = groups ? static_cast<double>(distinct) / static_cast<double>(groups) : 0;
    row.picks_per_16 = groups ? static_cast<double>(picks) / static_cast<double>(groups) : 0;
  }

  const BenchOptions& options_;
  const Config& config_;
  std::int64_t tokens_;
  Execution& execution_;
  Device& device_;
  Communicator& control_;
  OwnedStream stream_;
  Staging staging_;
  Partition partition_;
  std::vector<std::unique_ptr<LayerMemory>> sets_;
  RankFacts facts_;
  StepRecord record_;
};

BenchOptions decided(BenchOptions options, bool gpu) {
  options.begin = options.begin.value_or(gpu ? 8 << 10 : 1 << 10);
  options.end = options.end.value_or(std::max<std::int64_t>(*options.begin, gpu ? 64 << 10 : 4 << 10));
  options.iterations = options.iterations.value_or(gpu ? 20 : 3);
  options.warmups = options.warmups.value_or(gpu ? 5 : 1);
  Config& config = options.config;
  set_default(config.num_q_heads, gpu ? 64 : 8);
  set_default(config.num_kv_heads, gpu ? 4 : 2);
  set_default(config.head_dim_qk, gpu ? 128 : 64);
  set_default(config.head_dim_v, gpu ? 128 : 64);
  config.compress_hidden_k = config.compress_hidden_v = options.hidden;
  config = config.with_defaults();
  if (*options.end < *options.begin)
    throw ArgumentError(fmt::format("--end: found {}, expected at least --begin = {}", *options.end, *options.begin));
  if (options.documents > *options.begin)
    throw ArgumentError(
        fmt::format("--documents: found {}, expected at most --begin = {}", options.documents, *options.begin));
  config.validate();
  return options;
}

}  // namespace

BenchSetting bench_setting(const BenchOptions& options, Execution& execution, int ranks) {
  Device& device = execution.device();
  return {decided(options, device.name() == "cuda"),
          ranks,
          std::string(device.name()),
          device.description(),
          std::string(name_of(execution.transport())),
          execution.dtype(),
          {}};
}

void bench(const BenchOptions& options, const RankPlace& place) {
  Communicator& control = place.control;
  agree_on(control, "flags", [&] {
    if (options.decode && !options.trace.empty())
      throw ArgumentError("--trace: found with --decode, expected a step of a forward and a backward");
  });
  if (options.decode) return bench_decode(options, place);
  const bool leads = control.rank() == 0;
  std::optional<Execution> execution;
  std::optional<BenchInputs> inputs;
  std::optional<ReportFile> report, trace;
  BenchSetting setting;
  agree_on(control, "open", [&] {
    execution.emplace(options.execution, place);
    setting = bench_setting(options, *execution, control.size());
    execution->device().check_supported(setting.options.config, setting.dtype);
    inputs.emplace(setting.dtype, options.selection, options.seed);
    if (leads && !options.json.empty()) report.emplace(options.json);
    if (leads && !options.trace.empty()) trace.emplace(options.trace);
  });
  agree(control, execution->describe() + " " + setting.options.describe());
  setting.hosts = hosts_of(control);
  execution->connect();
  execution->device().activate();

  std::vector<BenchRow> rows;
  if (leads) fmt::print("{}", table_head(setting));
  for (std::int64_t tokens = *setting.options.begin; tokens <= *setting.options.end; tokens *= setting.options.factor) {
    Progress progress(leads);
    std::optional<LengthBench> length;
    agree_on(control, "set a length up",
             [&] { length.emplace(setting, tokens, *execution, control, place.local_size); });
    progress.show(fmt::format("making inputs of {} tokens", tokens));
    length->make_inputs(*inputs);
    progress.show(fmt::format("measuring {} tokens", tokens));
    rows.push_back(length->measure());
    progress.show("");
    if (leads) {
      fmt::print("{}", table_row(rows.back(), setting.options.execution.backward));
      std::fflush(stdout);
    }
  }
  agree_on(control, "report", [&] {
    if (report) report->write(json_of(setting, rows));
    if (trace) trace->write(chrome_trace_of(rows.back().records));
  });
}

}  // namespace cpnsa::tool
