#include "tools/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "tools/json_output.hpp"
#include "tools/layer_tensors.hpp"
#include "tools/plan_decode.hpp"
#include "tools/plan_models.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

constexpr int does_not_fit = 3;
// Planning a rank takes a time that grows with the number of ranks.
constexpr int all_ranks_up_to = 8, sampled_ranks = 4;
constexpr double gibibyte = 1 << 30;

PickPattern picks_of(const PlanOptions& options) {
  return options.selection == Selection::random ? PickPattern::random : PickPattern::local;
}

/// The choices that alternatives vary.
struct Variant {
  PartitionKind partition;
  Exchange exchange;
  bool keep_blocks;
  bool recompute_branches;

  std::string flags() const {
    return fmt::format("--partition {} --exchange {}{}{}", name_of(partition), name_of(exchange),
                       keep_blocks ? " --keep-blocks" : "", recompute_branches ? " --recompute-branches" : "");
  }
};

/// Bytes of the caller's tensors on one rank of one layer.
struct TensorBytes {
  std::size_t held = 0;       ///< inputs, outputs and parameters: of every layer at once
  std::size_t gradients = 0;  ///< of one layer at a time, and those of its parameters
  std::size_t all() const { return held + gradients; }
};

/// A number of ranks, forecast.
struct Point {
  int ranks;
  Variant variant;
  LayerForecast layer;
  TensorBytes tensors;
  std::size_t total_bytes = 0;
  bool fits = true;
  double seconds = 0;  ///< of a layer, forward and backward
};

class Planner {
 public:
  explicit Planner(const PlanOptions& options) : options_(options), config_(planned_config(options)) {
    compute_ = options.measured.empty() ? built_in_compute(options.gpu, picks_of(options))
                                        : measured_compute(options.measured);
    network_ = built_in_network();
    if (!options.links.empty()) network_ = measured_network(options.links, network_);
    if (options.memory_gib) {
      if (*options.memory_gib <= 0)
        throw ArgumentError(fmt::format("--memory: found {}, expected more than 0", *options.memory_gib));
      compute_.memory_bytes = static_cast<std::size_t>(*options.memory_gib * gibibyte);
    }
    if (options.device == DeviceKind::cpu) {
      device_ = cpu::make_device();
      if (options.measured.empty()) compute_.lengths.clear();
      if (!options.memory_gib) compute_.memory_bytes = 0;
    } else if (backends::cuda_devices() > 0) {
      device_ = backends::make_cuda_device(0);
    } else if (backends::has_cuda) {
      static_cast<void>(backends::cuda_kernels_of(config_, options.dtype, 90));  // what no kernel serves is refused
    }
    config_.validate();
    for (std::int64_t i = 0; i <= options.documents; ++i)
      bounds_.push_back(options.tokens / options.documents * i +
                        options.tokens % options.documents * i / options.documents);
  }

  Variant variant() const {
    return {options_.partition, options_.exchange, options_.keep_blocks, options_.recompute_branches};
  }

  Point at(int ranks, const Variant& variant, int sampled_ranks) const {
    Point point{ranks, variant, {}, {}};
    ForecastOptions options;
    options.attention.dtype = options_.dtype;
    options.attention.exchange = variant.exchange;
    options.attention.backward = options_.backward;
    options.attention.refetch_blocks = !variant.keep_blocks;
    options.attention.recompute_branches = variant.recompute_branches;
    options.attention.reuse_saved = true;
    options.picks = picks_of(options_);
    options.device = device_.get();
    options.max_ranks = sampled_ranks;
    const Partition partition = Partition::make(variant.partition, bounds_, config_.select_block, ranks);
    point.layer = forecast(config_, partition, options, compute_, network_);
    for (const RankForecast& rank : point.layer.of_ranks) {
      const TensorBytes tensors = tensor_bytes(rank.rows);
      if (tensors.all() > point.tensors.all()) point.tensors = tensors;
      point.total_bytes = std::max(point.total_bytes, total_bytes(rank, tensors));
    }
    point.fits = compute_.memory_bytes == 0 || point.total_bytes <= compute_.memory_bytes;
    point.seconds = point.layer.forward_seconds + point.layer.backward_seconds;
    return point;
  }

  const Config& config() const { return config_; }
  const ComputeModel& compute() const { return compute_; }
  const NetworkModel& network() const { return network_; }

 private:
  // As LayerMemory allocates them.
  TensorBytes tensor_bytes(std::int64_t rows) const {
    TensorBytes bytes;
    const std::size_t element = size_of(options_.dtype);
    const auto out = static_cast<std::size_t>(rows * config_.num_q_heads * config_.head_dim_v) * element;
    const auto selected = static_cast<std::size_t>(rows * config_.num_kv_heads * config_.select_count) * 4;
    bytes.held = out + selected;
    for (const LayerTensor& tensor : layer_tensors(config_, options_.tokens, options_.separate_kv)) {
      std::size_t elements = 1;
      const std::vector<std::int64_t> shape = tensor.extents();
      for (std::size_t i = 0; i < shape.size(); ++i)
        elements *= static_cast<std::size_t>(tensor.per_token && i == 0 ? rows : shape[i]);
      bytes.held += elements * element;
      const DType gradient = tensor.per_token ? options_.dtype : accumulate_dtype(options_.dtype);
      if (options_.backward) bytes.gradients += elements * size_of(gradient);
    }
    if (options_.backward) bytes.gradients += out;  // dout
    return bytes;
  }

  std::size_t total_bytes(const RankForecast& rank, const TensorBytes& tensors) const {
    const auto layers = static_cast<std::size_t>(options_.layers);
    const std::size_t held = options_.backward ? layers : 1;  // a prefill keeps no layer's tensors
    return rank.workspace_bytes + layers * (rank.saved_bytes + rank.list_bytes) + held * tensors.held +
           tensors.gradients + static_cast<std::size_t>(options_.other_gib.value_or(0) * gibibyte);
  }

  const PlanOptions& options_;
  Config config_;
  ComputeModel compute_;
  NetworkModel network_;
  std::unique_ptr<Device> device_;
  std::vector<std::int64_t> bounds_;
};

ordered_json json_of(const std::vector<MemoryPart>& parts) {
  ordered_json json = ordered_json::object();
  for (const MemoryPart& part : parts) json[part.name] = part.bytes;
  return json;
}

ordered_json json_of(const ByWork& seconds) {
  ordered_json json = ordered_json::object();
  for (const WorkKind kind : enum_values<WorkKind>)
    json[std::string(name_of(kind))] = seconds[static_cast<std::size_t>(kind)];
  return json;
}

ordered_json json_of(const RankForecast& rank) {
  ordered_json received = ordered_json::object();
  for (const Traffic traffic : enum_values<Traffic>)
    received[std::string(name_of(traffic))] = rank.bytes_received[static_cast<std::size_t>(traffic)];
  return {{"rank", rank.rank},
          {"rows", rank.rows},
          {"saved_bytes", rank.saved_bytes},
          {"saved", json_of(rank.saved)},
          {"workspace_of_a_step_bytes", rank.workspace_bytes},
          {"forward_workspace", json_of(rank.forward)},
          {"backward_workspace", json_of(rank.backward)},
          {"list_bytes", rank.list_bytes},
          {"workspace_bytes", rank.layer_bytes()},
          {"bytes_received", received},
          {"blocks_needed", rank.blocks_needed},
          {"blocks_fetched", rank.blocks_fetched},
          {"forward_compute_seconds", json_of(rank.forward_compute)},
          {"backward_compute_seconds", json_of(rank.backward_compute)},
          {"forward_wire_seconds", rank.forward_wire},
          {"backward_wire_seconds", rank.backward_wire},
          {"forward_seconds", rank.forward_seconds},
          {"backward_seconds", rank.backward_seconds}};
}

/// The parts of a plan; the keys of the JSON.
struct Result {
  std::vector<Point> points;        ///< as asked for
  std::vector<Point> curve;         ///< 1, 2, 4 ... ranks
  std::vector<Point> alternatives;  ///< of the last number of ranks, fastest first
  std::optional<int> smallest;
  std::optional<int> best;  ///< the last doubling that saved a quarter of the time
  double single_rank_seconds = 0;

  double efficiency(const Point& point) const {
    return point.seconds > 0 ? single_rank_seconds / (point.ranks * point.seconds) : 0;
  }
  bool fits() const {
    return std::all_of(points.begin(), points.end(), [](const Point& point) { return point.fits; });
  }
};

void add_curve(const Planner& planner, const PlanOptions& options, Result& result) {
  constexpr int sampled = 2;  // rank 0 reaches the most blocks under zigzag, the last one under contiguous
  const std::int64_t blocks = std::max<std::int64_t>(1, options.tokens / planner.config().select_block);
  const std::int64_t last = std::min<std::int64_t>(std::max<std::int64_t>(512, options.ranks.back()), blocks);
  for (std::int64_t ranks = 1; ranks <= last; ranks *= 2)
    result.curve.push_back(planner.at(static_cast<int>(ranks), planner.variant(), sampled));
  result.single_rank_seconds = result.curve.front().seconds;
  for (std::size_t i = 0; i < result.curve.size(); ++i) {
    const Point& point = result.curve[i];
    if (point.fits && !result.smallest) result.smallest = point.ranks;
    const bool helps = i == 0 || point.seconds <= 0.75 * result.curve[i - 1].seconds;
    if (point.seconds > 0 && helps && (i == 0 || result.best == result.curve[i - 1].ranks)) result.best = point.ranks;
  }
}

void add_alternatives(const Planner& planner, const PlanOptions& options, Result& result) {
  constexpr int sampled = 2;
  constexpr std::size_t shown = 3;
  const int ranks = static_cast<int>(options.ranks.back());
  std::vector<Variant> variants;
  for (const PartitionKind kind : enum_values<PartitionKind>) {
    Variant variant = planner.variant();
    variant.partition = kind;
    if (kind != options.partition) variants.push_back(variant);
  }
  const auto change = [&](auto member, auto value) {
    Variant variant = planner.variant();
    if (variant.*member == value) return;
    variant.*member = value;
    variants.push_back(variant);
  };
  change(&Variant::exchange, Exchange::fetch);
  change(&Variant::exchange, Exchange::gather);
  if (options.backward) {
    change(&Variant::keep_blocks, !options.keep_blocks);
    change(&Variant::recompute_branches, !options.recompute_branches);
  }
  for (const Variant& variant : variants) result.alternatives.push_back(planner.at(ranks, variant, sampled));
  std::stable_sort(result.alternatives.begin(), result.alternatives.end(),
                   [](const Point& a, const Point& b) { return a.fits != b.fits ? a.fits : a.seconds < b.seconds; });
  if (result.alternatives.size() > shown)
    result.alternatives.erase(result.alternatives.begin() + shown, result.alternatives.end());
}

std::string command_of(const Planner& planner, const PlanOptions& options, const Point& point) {
  const Config& config = planner.config();
  return fmt::format(
      "mpirun -n {} cpnsa bench -b {} -e {} --documents {} --heads {} --kv-heads {} --dk {} --dv {} --dtype {} "
      "--selection {} {}{}",
      point.ranks, options.tokens, options.tokens, options.documents, config.num_q_heads, config.num_kv_heads,
      config.head_dim_qk, config.head_dim_v, name_of(options.dtype), name_of(options.selection), point.variant.flags(),
      options.backward ? "" : " --no-backward");
}

std::vector<std::string> assumptions_of(const Planner& planner, const PlanOptions& options, const Result& result) {
  std::vector<std::string> all{
      fmt::format("times: {} ({}), rates interpolated by the amount of work", planner.compute().name,
                  planner.compute().source),
      fmt::format("network: {} ({}): {:.0f} GB/s and {:.0f} us within nodes of {} ranks, {:.0f} GB/s and {:.0f} us "
                  "between nodes, per rank and direction",
                  planner.network().name, planner.network().source, planner.network().node_bytes_per_second * 1e-9,
                  planner.network().node_seconds * 1e6, planner.network().ranks_per_node,
                  planner.network().wide_bytes_per_second * 1e-9, planner.network().wide_seconds * 1e6),
      "hidden: halos and summaries behind the window attention, blocks behind the selected attention of the round "
      "before",
      fmt::format("blocks: the planner's exchange for sampled picks, {}", name_of(options.selection)),
      "not counted: projections, the rest of the model, optimizer state (--other)"};
  if (planner.compute().lengths.empty()) all[0] = "times: none, a CPU has no built-in model (--measured)";
  if (result.points.front().layer.scratch_estimated)
    all.emplace_back(
        "scratch memory of the kernels: estimated, and index lists (below 1 MiB) left out: this process has no GPU");
  if (options.ranks.back() > all_ranks_up_to)
    all.push_back(fmt::format("ranks: the first, the last and {} between them", sampled_ranks - 2));
  return all;
}

double gib(std::size_t bytes) {
  return static_cast<double>(bytes) / gibibyte;
}

std::string text_of(const Planner& planner, const PlanOptions& options, const Result& result) {
  std::string text = fmt::format(
      "# cpnsa plan: {} tokens in {} document{}, {} layer{}, {}, {}\n# {}\n"
      "# ms: one layer on its slowest rank; GiB: the fullest rank, all layers\n"
      "{:>7} {:>5} {:>9} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>10}\n",
      options.tokens, options.documents, options.documents == 1 ? "" : "s", options.layers,
      options.layers == 1 ? "" : "s", name_of(options.dtype), options.backward ? "training" : "prefill",
      planner.config().describe(), "# ranks", "fits", "GiB", "workspace", "saved/lay.", "tensors", "fwd ms", "bwd ms",
      "compute", "exposed", "effic.", "exchange");
  for (const Point& point : result.points)
    text += fmt::format(
        "{:>7} {:>5} {:>9.2f} {:>10.2f} {:>10.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>7.0f}% {:>10}\n",
        point.ranks, point.fits ? "yes" : "no", gib(point.total_bytes), gib(point.layer.max_workspace_bytes),
        gib(point.layer.max_saved_bytes), gib(point.tensors.all()), 1e3 * point.layer.forward_seconds,
        1e3 * point.layer.backward_seconds, 1e3 * point.layer.compute_seconds, 1e3 * point.layer.exposed_seconds,
        100 * result.efficiency(point), name_of(point.layer.exchange));
  text += fmt::format("smallest number of ranks that fits, of powers of two: {}\n",
                      result.smallest ? std::to_string(*result.smallest) : "none");
  if (result.best)
    text += fmt::format("more ranks than {} save less than a quarter of the time per doubling\n", *result.best);
  const RankForecast& last = result.points.back().layer.of_ranks.back();
  text += fmt::format("memory of rank {} of {}, bytes of a layer:\n", last.rank, result.points.back().ranks);
  const auto add_parts = [&](const char* name, const std::vector<MemoryPart>& parts) {
    for (const MemoryPart& part : parts) text += fmt::format("  {:<18} {:<26} {:>15}\n", name, part.name, part.bytes);
  };
  add_parts("saved", last.saved);
  add_parts("forward workspace", last.forward);
  add_parts("backward workspace", last.backward);
  text += fmt::format("  {:<18} {:<26} {:>15}\n", "lists", "", last.list_bytes);
  text += fmt::format("alternatives for {} ranks:\n", result.points.back().ranks);
  for (const Point& point : result.alternatives)
    text += fmt::format("  {:<70} {:>9.3f} ms {:>8.2f} GiB{}\n", point.variant.flags(), 1e3 * point.seconds,
                        gib(point.total_bytes), point.fits ? "" : ", does not fit");
  text += fmt::format("to measure it: {}\nassumptions:\n", command_of(planner, options, result.points.back()));
  for (const std::string& assumption : assumptions_of(planner, options, result))
    text += fmt::format("  {}\n", assumption);
  return text;
}

ordered_json json_of(const Result& result, const Point& point) {
  ordered_json ranks = ordered_json::array();
  for (const RankForecast& rank : point.layer.of_ranks) ranks.push_back(json_of(rank));
  return {{"ranks", point.ranks},
          {"fits", point.fits},
          {"total_bytes", point.total_bytes},
          {"workspace_bytes", point.layer.max_layer_bytes},
          {"saved_bytes", point.layer.max_saved_bytes},
          {"tensor_bytes", point.tensors.all()},
          {"scratch_estimated", point.layer.scratch_estimated},
          {"exchange", name_of(point.layer.exchange)},
          {"partition", name_of(point.variant.partition)},
          {"flags", point.variant.flags()},
          {"seconds", point.seconds},
          {"forward_seconds", point.layer.forward_seconds},
          {"backward_seconds", point.layer.backward_seconds},
          {"compute_seconds", point.layer.compute_seconds},
          {"exposed_seconds", point.layer.exposed_seconds},
          {"efficiency", result.efficiency(point)},
          {"of_ranks", ranks}};
}

ordered_json json_of(const Planner& planner, const PlanOptions& options, const Result& result) {
  ordered_json report{{"provenance", build_json()},
                      {"tokens", options.tokens},
                      {"documents", options.documents},
                      {"layers", options.layers},
                      {"dtype", name_of(options.dtype)},
                      {"config", planner.config().describe()},
                      {"memory_bytes", planner.compute().memory_bytes},
                      {"fits", result.fits()}};
  report["rows"] = ordered_json::array();
  for (const Point& point : result.points) report["rows"].push_back(json_of(result, point));
  report["smallest_ranks"] = result.smallest ? ordered_json(*result.smallest) : ordered_json();
  report["useful_ranks"] = result.best ? ordered_json(*result.best) : ordered_json();
  report["curve"] = ordered_json::array();
  for (const Point& point : result.curve)
    report["curve"].push_back({{"ranks", point.ranks},
                               {"fits", point.fits},
                               {"total_bytes", point.total_bytes},
                               {"seconds", point.seconds},
                               {"efficiency", result.efficiency(point)}});
  report["alternatives"] = ordered_json::array();
  for (const Point& point : result.alternatives) report["alternatives"].push_back(json_of(result, point));
  report["command"] = command_of(planner, options, result.points.back());
  report["assumptions"] = assumptions_of(planner, options, result);
  return report;
}

}  // namespace

int plan(const PlanOptions& options, const RankPlace& place) {
  int status = 0;
  agree_on(place.control, "plan", [&] {
    if (place.control.rank() != 0) return;
    if (options.decode) {
      status = plan_decode(options);
      return;
    }
    const Planner planner(options);
    Result result;
    for (const std::int64_t ranks : options.ranks)
      result.points.push_back(planner.at(static_cast<int>(ranks), planner.variant(),
                                         ranks <= all_ranks_up_to ? all_ranks_up_to : sampled_ranks));
    add_curve(planner, options, result);
    add_alternatives(planner, options, result);
    print_report(options.json, text_of(planner, options, result), json_of(planner, options, result).dump(2) + "\n");
    if (!result.fits()) status = does_not_fit;
  });
  int all = 0;
  std::vector<int> of_ranks(static_cast<std::size_t>(place.control.size()));
  place.control.all_gather_host(&status, of_ranks.data(), sizeof status);
  for (const int of_rank : of_ranks) all = std::max(all, of_rank);
  return all;
}

}  // namespace cpnsa::tool
