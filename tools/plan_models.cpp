#include "tools/plan_models.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"
#include "tools/files.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::json;

constexpr std::size_t max_bytes = std::size_t{64} << 20;

/// A JSON report; every failure names the file.
class Report {
 public:
  explicit Report(const std::filesystem::path& path) : path_(path.string()) {
    json_ = json::parse(read_text(path, max_bytes), nullptr, false);
    if (!json_.is_object()) fail("no JSON object", "the report of the command");
  }

  const json& at(const json& object, const char* key) const {
    if (!object.is_object() || !object.contains(key)) fail(fmt::format("no key {}", key), "it");
    return object[key];
  }
  double number(const json& object, const char* key) const {
    const json& value = at(object, key);
    if (!value.is_number()) fail(fmt::format("{} = {}", key, value.dump()), "a number");
    return value.get<double>();
  }
  const json& root() const { return json_; }
  [[noreturn]] void fail(const std::string& found, const std::string& expected) const {
    throw ArgumentError(fmt::format("{}: found {}, expected {}", path_, found, expected));
  }

 private:
  std::string path_;
  json json_;
};

void read(const Report& report, const json& keys, const schema::ConfigKey& key, std::int64_t& value) {
  value = static_cast<std::int64_t>(report.number(keys, key.name.data()));
}
void read(const Report& report, const json& keys, const schema::ConfigKey& key, std::optional<double>& value) {
  value = report.number(keys, key.name.data());
}
template <NamedEnum Choice>
void read(const Report& report, const json& keys, const schema::ConfigKey& key, Choice& value) {
  const json& name = report.at(keys, key.name.data());
  const auto choice = name.is_string() ? value_named<Choice>(name.get<std::string>()) : std::nullopt;
  if (!choice) report.fail(fmt::format("{} = {}", key.name, name.dump()), "the name of a value");
  value = *choice;
}

ByWork stages(const Report& report, const json& pass) {
  ByWork seconds{};
  const json& stages = report.at(pass, "stage_seconds");
  for (const WorkKind kind : enum_values<WorkKind>)
    seconds[static_cast<std::size_t>(kind)] = report.number(stages, name_of(kind).data());
  return seconds;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

Config planned_config(const PlanOptions& options) {
  Config config = options.config;
  const auto set_default = [](std::int64_t& value, std::int64_t fallback) {
    if (value == 0) value = fallback;
  };
  set_default(config.num_q_heads, 64);
  set_default(config.num_kv_heads, 4);
  set_default(config.head_dim_qk, 128);
  set_default(config.head_dim_v, 128);
  config.compress_hidden_k = config.compress_hidden_v = options.hidden;
  return config.with_defaults();
}

ComputeModel measured_compute(const std::filesystem::path& path) {
  const Report report(path);
  if (const double ranks = report.number(report.root(), "ranks"); ranks != 1)
    report.fail(fmt::format("ranks = {}", ranks), "1, because a rank's waits for others are no computation");
  if (const double documents = report.number(report.root(), "documents"); documents != 1)
    report.fail(fmt::format("documents = {}", documents), "1");
  ComputeModel model;
  model.name = report.root().value("hardware", "measured");
  model.source = path.string();
  const json& keys = report.at(report.root(), "config");
  schema::for_each_key(model.config,
                       [&](const schema::ConfigKey& key, auto& value) { read(report, keys, key, value); });
  for (const json& row : report.at(report.root(), "rows")) {
    MeasuredLength length{
        static_cast<std::int64_t>(report.number(row, "tokens")), stages(report, report.at(row, "forward")), {}};
    if (row.contains("backward")) length.backward = stages(report, row["backward"]);
    model.lengths.push_back(length);
  }
  if (model.lengths.empty()) report.fail("no rows", "at least one length");
  std::sort(model.lengths.begin(), model.lengths.end(),
            [](const MeasuredLength& a, const MeasuredLength& b) { return a.tokens < b.tokens; });
  return model;
}

NetworkModel measured_network(const std::filesystem::path& path, NetworkModel network) {
  const Report report(path);
  std::vector<double> node_bytes, node_seconds, wide_bytes, wide_seconds;
  for (const json& link : report.at(report.root(), "links")) {
    const json& same = report.at(link, "same_host");
    const bool node = same.is_boolean() && same.get<bool>();
    (node ? node_bytes : wide_bytes).push_back(report.number(link, "gb_per_second") * 1e9);
    (node ? node_seconds : wide_seconds).push_back(report.number(link, "microseconds") * 1e-6);
  }
  if (!node_bytes.empty()) {
    network.node_bytes_per_second = median(node_bytes);
    network.node_seconds = median(node_seconds);
  }
  if (!wide_bytes.empty()) {
    network.wide_bytes_per_second = median(wide_bytes);
    network.wide_seconds = median(wide_seconds);
  }
  std::map<std::string, int> ranks_of_host;
  for (const json& host : report.at(report.at(report.root(), "provenance"), "hosts"))
    if (host.is_string()) ++ranks_of_host[host.get<std::string>()];
  for (const auto& [host, ranks] : ranks_of_host) network.ranks_per_node = std::max(1, ranks);
  network.name = "measured";
  network.source = path.string();
  return network;
}

}  // namespace cpnsa::tool
