#include "tools/bench_decode.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/decoder.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/page_allocator.hpp"
#include "tools/bench.hpp"
#include "tools/bench_inputs.hpp"
#include "tools/bench_report.hpp"
#include "tools/bench_samples.hpp"
#include "tools/execution.hpp"
#include "tools/json_output.hpp"
#include "tools/layer_memory.hpp"
#include "tools/progress.hpp"
#include "tools/provenance.hpp"
#include "tools/timed_device.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

/// One length.
struct DecodeRow {
  std::int64_t tokens = 0;   ///< of a sequence, those of the step included
  double total_seconds = 0;  ///< of a step: prepare() and step()
  double host_seconds = 0;   ///< that the calls of an uncaptured step take on the host
  std::array<double, decode_stage_count> stage_seconds{};
  double read_bytes = 0;             ///< that all ranks must read together
  double copy_bytes_per_second = 0;  ///< of one rank's device: bytes read and written by a large copy
  std::int64_t cache_bytes = 0;      ///< of a rank
  std::int64_t workspace_bytes = 0;  ///< of a rank

  /// The time that one rank needs to read its share.
  double limit_seconds(int ranks) const { return read_bytes / ranks / copy_bytes_per_second; }
};

/// Bytes read and written per second by a copy that no cache holds.
double copy_speed(Device& device, Stream stream) {
  if (device.host_accessible()) return 1e10;  // a round number for the CPU device, whose limit is arithmetic
  constexpr std::size_t bytes = std::size_t{1} << 30;
  const DeviceBuffer from(device, bytes), to(device, bytes);
  const OwnedEvent begin(device), end(device);
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    device.record(begin.get(), stream);
    device.copy(to.data(), from.data(), bytes, stream);
    device.record(end.get(), stream);
    device.synchronize(stream);
    seconds.push_back(device.seconds_between(begin.get(), end.get()));
  }
  return 2 * static_cast<double>(bytes) / median(seconds);
}

/// One rank's sequences of one length: their caches, filled with random numbers, and a step.
class DecodeBench {
 public:
  DecodeBench(const BenchSetting& setting, std::int64_t tokens, Execution& execution, Communicator& control)
      : options_(setting.options),
        config_(setting.options.config),
        tokens_(tokens),
        control_(control),
        device_(execution.device()),
        stream_(device_),
        communicator_(execution.communicator()),
        decoder_(config_, sizes(execution.dtype()), device_, communicator_),
        counts_(count_pages()),
        pages_(decoder_.layout(), communicator_.rank(), counts_, options_.batch, tokens, options_.seed) {}

  /// Collective.
  void make_inputs(const BenchInputs& inputs) {
    agree_on(control_, "allocate the cache", [&] { allocate(inputs); });
  }

  DecodeRow measure() {
    DecodeRow row;
    row.tokens = tokens_;
    std::unique_ptr<backends::CapturedWork> graph;
    step();  // a graph's kernels are loaded by their first launch
    wait();
    if (options_.graph) graph = backends::capture(stream_.get(), [&] { step(); });
    const auto enqueue = [&] { graph ? graph->enqueue(stream_.get()) : step(); };
    row.total_seconds = time(false, enqueue).slowest_medians(control_)[0];
    row.host_seconds = time(false, [&] { step(); }).slowest_medians(control_)[1];
    const std::vector<double> stages = time(true, [&] { step(); }).slowest_medians(control_);
    std::copy(stages.begin(), stages.end(), row.stage_seconds.begin());
    row.read_bytes =
        decode_read_bytes(config_, decoder_.layout().options().dtype, options_.batch, options_.queries, tokens_);
    row.copy_bytes_per_second = copy_speed(device_, stream_.get());
    row.cache_bytes = static_cast<std::int64_t>(cache_memory_.size());
    row.workspace_bytes = static_cast<std::int64_t>(workspace_.size() + schedule_.size());
    return row;
  }

 private:
  DecoderOptions sizes(DType dtype) const {
    DecoderOptions sizes;
    sizes.cache.dtype = dtype;
    sizes.cache.page = options_.page;
    sizes.cache.shared_branches = !options_.separate_kv;
    sizes.max_sequences = options_.batch;
    sizes.max_tokens = options_.batch * options_.queries;
    sizes.max_length = tokens_;
    return sizes;
  }

  PageCounts count_pages() const {
    PageCounts one = PageAllocator::pages_for(decoder_.layout(), communicator_.rank(), tokens_);
    one.cmp *= options_.batch, one.slc *= options_.batch, one.win *= options_.batch, one.summaries *= options_.batch;
    return one;
  }

  void allocate(const BenchInputs& inputs) {
    const KvCacheLayout& layout = decoder_.layout();
    const DType dtype = layout.options().dtype;
    cache_memory_ = DeviceBuffer(device_, layout.bytes(counts_));
    workspace_ = DeviceBuffer(device_, decoder_.workspace_bytes());
    schedule_ = DeviceBuffer(device_, std::max<std::size_t>(1, decoder_.schedule_bytes()));
    cache_ = layout.view(cache_memory_.data(), counts_);
    fill_cache(inputs, dtype);

    const std::int64_t rows = options_.batch * options_.queries;
    const std::vector<LayerTensor> tensors = layer_tensors(config_, rows, options_.separate_kv);
    step_.emplace(device_, dtype, dtype, rows, config_, tensors, false);
    inputs.fill(device_, stream_.get(), *step_, tensors, nullptr,
                Partition::make(PartitionKind::contiguous, std::vector<std::int64_t>{0, rows}, config_.select_block, 1),
                0, 0);

    std::vector<std::int32_t> lengths, cu_q{0};
    for (std::int64_t i = 0; i < options_.batch; ++i) {
      pages_.reserve(i, tokens_);
      lengths.push_back(static_cast<std::int32_t>(tokens_ - options_.queries));
      cu_q.push_back(static_cast<std::int32_t>((i + 1) * options_.queries));
    }
    batch_.sequences = batch_.num_slots = options_.batch;
    batch_.tokens = rows;
    batch_.lengths = upload(lengths);
    batch_.cu_q = upload(cu_q);
    const auto table = [&](CachePart part) { return pages_.on_device(part, upload(pages_.table(part))); };
    batch_.cmp = table(CachePart::cmp);
    batch_.slc = table(CachePart::slc);
    batch_.win = table(CachePart::win);
    batch_.summaries = table(CachePart::summaries);
    flush_.emplace(device_, stream_.get());
    device_.synchronize(stream_.get());
  }

  // In long rows, and the rest in short ones: the size is a multiple of 256 bytes.
  void fill_cache(const BenchInputs& inputs, DType dtype) {
    auto* at = static_cast<std::byte*>(cache_memory_.data());
    std::size_t left = cache_memory_.size();
    for (const std::int64_t width : {4096, 32}) {
      const backends::RandomRows numbers{options_.seed + left, width, 1};
      const std::size_t row_bytes = static_cast<std::size_t>(width) * size_of(dtype), rows = left / row_bytes;
      if (rows > 0) inputs.fill_rows(device_, stream_.get(), at, numbers, 0, static_cast<std::int64_t>(rows));
      at += rows * row_bytes, left -= rows * row_bytes;
    }
  }

  const std::int32_t* upload(const std::vector<std::int32_t>& numbers) {
    const std::size_t bytes = numbers.size() * sizeof(std::int32_t);
    uploads_.emplace_back(device_, std::max<std::size_t>(1, bytes));
    device_.copy(uploads_.back().data(), numbers.data(), bytes, stream_.get());
    device_.synchronize(stream_.get());
    return static_cast<const std::int32_t*>(uploads_.back().data());
  }

  void step() {
    DecodeOutputs outputs;
    outputs.out = step_->out().view();
    outputs.selected = step_->selected();
    decoder_.prepare(batch_, schedule_.data(), stream_.get());
    decoder_.step(step_->inputs(), cache_, outputs, workspace_.data(), stream_.get());
  }

  // A device's failure shows here, on the failing rank alone.
  void wait() {
    agree_on(control_, "finish the step", [&] { communicator_.wait(device_, stream_.get()); });
  }

  /// Samples of run(): {on the device, on the host}, or by stage.
  template <class Step>
  Samples time(bool stages, Step&& run) {
    Samples samples{stages ? decode_stage_count : 2, {}};
    const OwnedEvent begin(device_), end(device_);
    for (std::int64_t i = -*options_.warmups; i < *options_.iterations; ++i) {
      control_.barrier();
      flush_->enqueue();
      if (stages) device_.start_timing();
      device_.record(begin.get(), stream_.get());
      const auto start = std::chrono::steady_clock::now();
      run();
      const std::chrono::duration<double> host = std::chrono::steady_clock::now() - start;
      device_.record(end.get(), stream_.get());
      wait();
      std::vector<double> sample{device_.seconds_between(begin.get(), end.get()), host.count()};
      if (stages) {
        const auto seconds = device_.stop_timing();
        sample.assign(seconds.begin(), seconds.end());
      }
      if (i >= 0) samples.seconds.insert(samples.seconds.end(), sample.begin(), sample.end());
    }
    return samples;
  }

  const BenchOptions& options_;
  const Config& config_;
  std::int64_t tokens_;
  Communicator& control_;
  TimedDevice device_;
  OwnedStream stream_;
  Communicator& communicator_;
  Decoder decoder_;
  PageCounts counts_;
  PageAllocator pages_;
  DeviceBuffer cache_memory_, workspace_, schedule_;
  std::vector<DeviceBuffer> uploads_;
  KvCache cache_;
  DecodeBatch batch_;
  std::optional<LayerMemory> step_;
  std::optional<CacheFlush> flush_;
};

std::string decode_table_head(const BenchSetting& setting) {
  const BenchOptions& options = setting.options;
  std::string text = fmt::format(
      "# cpnsa bench --decode: {} rank{} ({}), {} ({}), {}, {} sequences, {} quer{} each, {}, {} iterations after {} "
      "warm-ups\n"
      "# {}\n"
      "# times in ms: median over iterations of the slowest rank, caches cold; stages one by one, without a graph; "
      "limit: reading what a step must\n"
      "{:>9}",
      setting.ranks, setting.ranks == 1 ? "" : "s", setting.transport, setting.device, setting.hardware,
      name_of(setting.dtype), options.batch, options.queries, options.queries == 1 ? "y" : "ies",
      options.graph ? "in a graph" : "no graph", *options.iterations, *options.warmups, options.config.describe(),
      "# tokens");
  for (const DecodeStage stage : enum_values<DecodeStage>) text += fmt::format(" {:>10}", name_of(stage));
  return text + fmt::format(" {:>10} {:>10} {:>10} {:>10} {:>10}\n", "total", "limit", "host", "read MiB", "cache MiB");
}

std::string table_row(const BenchSetting& setting, const DecodeRow& row) {
  std::string text = fmt::format("{:>9}", row.tokens);
  for (const double seconds : row.stage_seconds) text += fmt::format(" {:>10.4f}", 1e3 * seconds);
  return text + fmt::format(" {:>10.4f} {:>10.4f} {:>10.4f} {:>10.2f} {:>10.1f}\n", 1e3 * row.total_seconds,
                            1e3 * row.limit_seconds(setting.ranks), 1e3 * row.host_seconds, row.read_bytes / (1 << 20),
                            static_cast<double>(row.cache_bytes) / (1 << 20));
}

std::string json_of(const BenchSetting& setting, const std::vector<DecodeRow>& rows) {
  const BenchOptions& options = setting.options;
  ordered_json report = setting_json(setting);
  report["batch"] = options.batch;
  report["queries"] = options.queries;
  report["graph"] = options.graph;
  report["iterations"] = *options.iterations;
  report["warmups"] = *options.warmups;
  report["seed"] = options.seed;
  report["config"] = options.config.describe();
  report["rows"] = ordered_json::array();
  for (const DecodeRow& row : rows) {
    ordered_json entry, stages = ordered_json::object();
    for (const DecodeStage stage : enum_values<DecodeStage>)
      stages[std::string(name_of(stage))] = row.stage_seconds[static_cast<std::size_t>(stage)];
    entry["tokens"] = row.tokens;
    entry["seconds"] = row.total_seconds;
    entry["host_seconds"] = row.host_seconds;
    entry["stage_seconds"] = stages;
    entry["read_bytes"] = row.read_bytes;
    entry["copy_bytes_per_second"] = row.copy_bytes_per_second;
    entry["limit_seconds"] = row.limit_seconds(setting.ranks);
    entry["cache_bytes"] = row.cache_bytes;
    entry["workspace_bytes"] = row.workspace_bytes;
    report["rows"].push_back(entry);
  }
  return report.dump(2) + "\n";
}

}  // namespace

void bench_decode(const BenchOptions& options, const RankPlace& place) {
  Communicator& control = place.control;
  const bool leads = control.rank() == 0;
  std::optional<Execution> execution;
  std::optional<BenchInputs> inputs;
  std::optional<ReportFile> report;
  BenchSetting setting;
  agree_on(control, "open", [&] {
    execution.emplace(options.execution, place);
    setting = bench_setting(options, *execution, control.size());
    Device& device = execution->device();
    const Config& config = setting.options.config;
    if (options.graph && device.name() != "cuda")
      throw ArgumentError(fmt::format("--graph: found the {} device, expected cuda", device.name()));
    if (options.page % config.select_block != 0)
      throw ArgumentError(
          fmt::format("--page: found {}, expected a multiple of select_block {}", options.page, config.select_block));
    if (options.queries > *setting.options.begin)
      throw ArgumentError(
          fmt::format("--queries: found {}, expected at most --begin = {}", options.queries, *setting.options.begin));
    device.check_supported(config, setting.dtype);
    device.check_decode_supported(config, setting.dtype, options.page > 0 ? options.page : config.select_block);
    inputs.emplace(setting.dtype, options.selection, options.seed);
    if (leads && !options.json.empty()) report.emplace(options.json);
  });
  agree(control, execution->describe() + " " + setting.options.describe());
  setting.hosts = hosts_of(control);
  execution->connect();
  execution->device().activate();

  std::vector<DecodeRow> rows;
  if (leads) fmt::print("{}", decode_table_head(setting));
  for (std::int64_t tokens = *setting.options.begin; tokens <= *setting.options.end; tokens *= setting.options.factor) {
    Progress progress(leads);
    progress.show(fmt::format("making caches of {} tokens", tokens));
    DecodeBench length(setting, tokens, *execution, control);
    length.make_inputs(*inputs);
    progress.show(fmt::format("measuring {} tokens", tokens));
    rows.push_back(length.measure());
    progress.show("");
    if (leads) {
      fmt::print("{}", table_row(setting, rows.back()));
      std::fflush(stdout);
    }
  }
  agree_on(control, "report", [&] {
    if (report) report->write(json_of(setting, rows));
  });
}

}  // namespace cpnsa::tool
