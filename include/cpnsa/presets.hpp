#pragma once

#include <array>
#include <string_view>

#include "cpnsa/config.hpp"

namespace cpnsa {

/// A named configuration to begin from.
struct Preset {
  std::string_view name;
  std::string_view meaning;
  std::int64_t num_q_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim_qk;
  std::int64_t head_dim_v;
};

/// All of them; other hyperparameters have their defaults, which are the paper's. Hopper has kernels of its own for
/// each.
inline constexpr std::array presets{Preset{"paper-27b", "the model of the paper, section 4.1", 64, 4, 192, 128},
                                    Preset{"wide-128", "64 heads of the width that most models have", 64, 4, 128, 128},
                                    Preset{"small", "for trying out: one KV head of width 64", 16, 1, 64, 64}};

/// The configuration of this name. Throws ConfigError listing the names.
Config preset(std::string_view name);

}  // namespace cpnsa
