#include "tools/config_flags.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "cpnsa/schema.hpp"

namespace cpnsa::tool {
namespace {

// "--compress-block,--compress_block": the key as a flag, and as it stands in config.json.
std::string flags_of(std::string_view key, const std::string& short_name = {}) {
  std::string dashed(key);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  std::string names = short_name.empty() ? "" : short_name + ",";
  names += "--" + dashed;
  if (dashed != key) names += fmt::format(",--{}", key);
  return names;
}

std::string short_name_of(std::string_view key) {
  if (key == "num_q_heads") return "--heads";
  if (key == "num_kv_heads") return "--kv-heads";
  if (key == "head_dim_qk") return "--dk";
  if (key == "head_dim_v") return "--dv";
  return {};
}

void add_key(Flags& flags, const schema::ConfigKey& key, std::int64_t& value) {
  flags.add_integer(flags_of(key.name, short_name_of(key.name)), value, key.required ? key.min : 0, schema::max_extent,
                    fmt::format("{} (default {})", key.meaning, key.required ? "the device's" : fmt::to_string(value)));
}
void add_key(Flags& flags, const schema::ConfigKey& key, std::optional<double>& value) {
  flags.add_number(flags_of(key.name), value, std::string(key.meaning));
}
template <NamedEnum Choice>
void add_key(Flags& flags, const schema::ConfigKey& key, Choice& value) {
  flags.add_choice(flags_of(key.name), value, fmt::format("{} (default {})", key.meaning, name_of(value)));
}

}  // namespace

void add_config(Flags& flags, Config& config, std::int64_t& hidden) {
  schema::for_each_key(config, [&](const schema::ConfigKey& key, auto& value) {
    if (!key.hidden_width) add_key(flags, key, value);
  });
  flags.add_integer("--hidden", hidden, 1, schema::max_extent,
                    "width of the mlp compressors' hidden layer (default twice the head dimension)");
}

}  // namespace cpnsa::tool
