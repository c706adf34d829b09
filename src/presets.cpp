#include "cpnsa/presets.hpp"

#include <fmt/format.h>

#include <string>

#include "cpnsa/error.hpp"

namespace cpnsa {

Config preset(std::string_view name) {
  std::string known;
  for (const Preset& preset : presets) {
    if (preset.name == name) {
      Config config;
      config.num_q_heads = preset.num_q_heads, config.num_kv_heads = preset.num_kv_heads;
      config.head_dim_qk = preset.head_dim_qk, config.head_dim_v = preset.head_dim_v;
      return config.with_defaults();
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", preset.name);
  }
  throw ConfigError(fmt::format("preset: found {}, expected one of {}", name, known));
}

}  // namespace cpnsa
