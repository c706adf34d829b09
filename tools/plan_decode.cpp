#include "tools/plan_decode.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/decode_forecast.hpp"
#include "cpnsa/error.hpp"
#include "tools/json_output.hpp"
#include "tools/plan_models.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

constexpr double gibibyte = 1 << 30;

double gib(std::size_t bytes) {
  return static_cast<double>(bytes) / gibibyte;
}

struct Point {
  DecodeForecast layer;
  std::size_t total_bytes = 0;  ///< of the fullest rank, all layers
  bool fits = true;
  std::int64_t max_batch = 0;  ///< sequences that fit; 0: none, or the memory is not known
};

class Planner {
 public:
  explicit Planner(const PlanOptions& options)
      : options_(options),
        config_(planned_config(options)),
        model_(built_in_decode(options.gpu)),
        network_(built_in_network()) {
    if (!options.measured.empty())
      throw ArgumentError("--measured: found with --decode, expected times of the built-in model (--gpu)");
    if (!options.links.empty()) network_ = measured_network(options.links, network_);
    if (options.queries > options.tokens)
      throw ArgumentError(
          fmt::format("--queries: found {}, expected at most --tokens = {}", options.queries, options.tokens));
    if (options.device == DeviceKind::cpu) {
      model_.bytes_per_second = 0, model_.memory_bytes = 0;
      device_ = cpu::make_device();
    } else if (backends::has_cuda) {
      static_cast<void>(backends::cuda_kernels_of(config_, options.dtype, 90));  // what no kernel serves is refused
    }
    if (options.memory_gib) {
      if (*options.memory_gib <= 0)
        throw ArgumentError(fmt::format("--memory: found {}, expected more than 0", *options.memory_gib));
      model_.memory_bytes = static_cast<std::size_t>(*options.memory_gib * gibibyte);
    }
  }

  Point at(int ranks) const {
    Point point = at(ranks, options_.batch);
    if (model_.memory_bytes > 0) point.max_batch = max_batch(ranks);
    return point;
  }

  const Config& config() const { return config_; }
  const DecodeModel& model() const { return model_; }
  const NetworkModel& network() const { return network_; }

 private:
  Point at(int ranks, std::int64_t batch) const {
    DecodeForecastOptions options;
    options.decoder.cache.dtype = options_.dtype;
    options.decoder.cache.page = options_.page;
    options.decoder.cache.shared_branches = !options_.separate_kv;
    options.decoder.cache.replicate_summaries = options_.replicate_summaries;
    options.decoder.max_sequences = batch;
    options.decoder.max_tokens = batch * options_.queries;
    options.decoder.max_length = options_.tokens;
    if (device_)
      options.memory = [&](const DecodeSize& size) {
        return DecodeMemory{device_->decode_scratch_bytes(size), device_->decode_schedule_bytes(size)};
      };
    else if (backends::has_cuda)
      options.memory = backends::cuda_decode_memory;
    Point point{forecast_decode(config_, ranks, options, model_, network_)};
    point.total_bytes =
        point.layer.rank_bytes(options_.layers) + static_cast<std::size_t>(options_.other_gib.value_or(0) * gibibyte);
    point.fits = model_.memory_bytes == 0 || point.total_bytes <= model_.memory_bytes;
    return point;
  }

  // Memory grows with the batch.
  std::int64_t max_batch(int ranks) const {
    const std::int64_t limit =
        std::min<std::int64_t>(1 << 20, std::numeric_limits<std::int32_t>::max() / options_.queries);
    std::int64_t fitting = 0, failing = 1;
    while (failing <= limit && at(ranks, failing).fits) fitting = failing, failing *= 2;
    while (failing - fitting > 1) {
      const std::int64_t middle = fitting + (failing - fitting) / 2;
      (at(ranks, middle).fits ? fitting : failing) = middle;
    }
    return fitting;
  }

  const PlanOptions& options_;
  Config config_;
  DecodeModel model_;
  NetworkModel network_;
  std::unique_ptr<Device> device_;  ///< the CPU's, or none: all GPUs ask for the same bytes
};

double step_seconds(const PlanOptions& options, const Point& point) {
  return static_cast<double>(options.layers) * point.layer.seconds();
}

double tokens_per_second(const PlanOptions& options, const Point& point) {
  const double seconds = step_seconds(options, point);
  return seconds > 0 ? static_cast<double>(options.batch * options.queries) / seconds : 0;
}

std::string command_of(const Planner& planner, const PlanOptions& options, const Point& point) {
  const Config& config = planner.config();
  std::string command = fmt::format(
      "mpirun -n {} cpnsa bench --decode -b {} -e {} --batch {} --queries {} --heads {} --kv-heads {} --dk {} --dv {} "
      "--dtype {}",
      point.layer.ranks, options.tokens, options.tokens, options.batch, options.queries, config.num_q_heads,
      config.num_kv_heads, config.head_dim_qk, config.head_dim_v, name_of(options.dtype));
  if (options.page > 0) command += fmt::format(" --page {}", options.page);
  if (options.separate_kv) command += " --separate-kv";
  return command + (options.device == DeviceKind::cpu ? " --device cpu" : " --graph");
}

std::vector<std::string> assumptions_of(const Planner& planner, const Point& point) {
  const DecodeModel& model = planner.model();
  const NetworkModel& network = planner.network();
  std::vector<std::string> all{
      model.bytes_per_second > 0
          ? fmt::format("times: {} ({}): {:.0f} us a layer, and the bytes that a step must read at {:.2f} TB/s",
                        model.name, model.source, 1e6 * model.fixed_seconds, 1e-12 * model.bytes_per_second)
          : "times: none, a CPU has no built-in model",
      fmt::format("network: {} ({}): messages of {:.0f} us within nodes of {} ranks, {:.0f} us beyond", network.name,
                  network.source, 1e6 * network.node_seconds, network.ranks_per_node, 1e6 * network.wide_seconds),
      "pages: those of sequences that all have --tokens tokens; pages of the compressed and the window branch that "
      "could be given back are counted",
      "not counted: projections, the rest of the model, the tensors of the new tokens (--other)"};
  if (!point.layer.device_counted)
    all.emplace_back("scratch memory of the kernels: left out, as this build is without CUDA; up to 0.5 GiB");
  return all;
}

std::string text_of(const Planner& planner, const PlanOptions& options, const std::vector<Point>& points) {
  std::string text = fmt::format(
      "# cpnsa plan: decoding {} sequence{} of {} tokens, {} new a step, {} layer{}, {}\n# {}\n"
      "# GiB: the fullest rank; ms: a step of all layers; us: messages of a layer's step, which nothing hides\n"
      "{:>7} {:>5} {:>9} {:>11} {:>10} {:>9} {:>10} {:>9} {:>9} {:>10} {:>10}\n",
      options.batch, options.batch == 1 ? "" : "s", options.tokens, options.queries, options.layers,
      options.layers == 1 ? "" : "s", name_of(options.dtype), planner.config().describe(), "# ranks", "fits", "GiB",
      "cache/layer", "workspace", "schedule", "step ms", "msgs us", "tokens/s", "KiB moved", "max batch");
  for (const Point& point : points) {
    std::int64_t moved = 0;
    for (const std::int64_t bytes : point.layer.bytes_received) moved += bytes;
    const DecodeRankForecast& first = point.layer.of_ranks.front();
    text += fmt::format(
        "{:>7} {:>5} {:>9.2f} {:>11.4f} {:>10.4f} {:>9.4f} {:>10.3f} {:>9.1f} {:>9.0f} {:>10.1f} {:>10}\n",
        point.layer.ranks, point.fits ? "yes" : "no", gib(point.total_bytes), gib(point.layer.max_cache_bytes),
        gib(first.workspace_bytes), gib(first.schedule_bytes), 1e3 * step_seconds(options, point),
        1e6 * point.layer.message_seconds, tokens_per_second(options, point), static_cast<double>(moved) / 1024,
        planner.model().memory_bytes > 0 ? std::to_string(point.max_batch) : "-");
  }
  text += fmt::format("memory of rank 0 of {}, bytes of a layer:\n", points.back().layer.ranks);
  const DecodeRankForecast& first = points.back().layer.of_ranks.front();
  for (const MemoryPart& part : first.cache) text += fmt::format("  {:<26} {:>15}\n", "cache " + part.name, part.bytes);
  text += fmt::format("  {:<26} {:>15}\n  {:<26} {:>15}\n", "workspace (all layers)", first.workspace_bytes,
                      "schedule (all layers)", first.schedule_bytes);
  text += fmt::format("to measure it: {}\nassumptions:\n", command_of(planner, options, points.back()));
  for (const std::string& assumption : assumptions_of(planner, points.back()))
    text += fmt::format("  {}\n", assumption);
  return text;
}

ordered_json json_of(const DecodeRankForecast& rank) {
  ordered_json cache = ordered_json::object();
  for (const MemoryPart& part : rank.cache) cache[part.name] = part.bytes;
  return {{"rank", rank.rank},
          {"cache_bytes", rank.cache_bytes},
          {"cache", cache},
          {"workspace_bytes", rank.workspace_bytes},
          {"schedule_bytes", rank.schedule_bytes}};
}

ordered_json json_of(const PlanOptions& options, const Point& point) {
  ordered_json ranks = ordered_json::array(), received = ordered_json::object();
  for (const DecodeRankForecast& rank : point.layer.of_ranks) ranks.push_back(json_of(rank));
  for (const DecodeTraffic traffic : enum_values<DecodeTraffic>)
    received[std::string(name_of(traffic))] = point.layer.bytes_received[static_cast<std::size_t>(traffic)];
  return {{"ranks", point.layer.ranks},
          {"fits", point.fits},
          {"total_bytes", point.total_bytes},
          {"max_batch", point.max_batch},
          {"messages", point.layer.messages},
          {"bytes_received", received},
          {"read_bytes", point.layer.read_bytes},
          {"device_counted", point.layer.device_counted},
          {"layer_seconds", point.layer.seconds()},
          {"message_seconds", point.layer.message_seconds},
          {"step_seconds", step_seconds(options, point)},
          {"tokens_per_second", tokens_per_second(options, point)},
          {"of_ranks", ranks}};
}

}  // namespace

int plan_decode(const PlanOptions& options) {
  constexpr int does_not_fit = 3;
  const Planner planner(options);
  std::vector<Point> points;
  for (const std::int64_t ranks : options.ranks) points.push_back(planner.at(static_cast<int>(ranks)));
  const bool fits = std::all_of(points.begin(), points.end(), [](const Point& point) { return point.fits; });
  ordered_json report{{"provenance", build_json()},
                      {"tokens", options.tokens},
                      {"batch", options.batch},
                      {"queries", options.queries},
                      {"layers", options.layers},
                      {"dtype", name_of(options.dtype)},
                      {"config", planner.config().describe()},
                      {"memory_bytes", planner.model().memory_bytes},
                      {"fits", fits},
                      {"rows", ordered_json::array()}};
  for (const Point& point : points) report["rows"].push_back(json_of(options, point));
  report["command"] = command_of(planner, options, points.back());
  report["assumptions"] = assumptions_of(planner, points.back());
  print_report(options.json, text_of(planner, options, points), report.dump(2) + "\n");
  return fits ? 0 : does_not_fit;
}

}  // namespace cpnsa::tool
