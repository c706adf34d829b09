#include "cpnsa/config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <type_traits>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"

namespace cpnsa {
namespace {

void require(bool holds, std::string_view key, std::int64_t found, const std::string& expected) {
  if (!holds) throw ConfigError(fmt::format("{}: found {}, expected {}", key, found, expected));
}

void check(const schema::ConfigKey& key, std::int64_t found) {
  require(found >= key.min && found <= schema::max_extent, key.name, found,
          fmt::format("a whole number from {} to {}", key.min, schema::max_extent));
}

void check(const schema::ConfigKey& key, const std::optional<double>& found) {
  if (found && !std::isfinite(*found))
    throw ConfigError(fmt::format("{}: found {}, expected a finite number", key.name, *found));
}

template <NamedEnum Choice>
void check(const schema::ConfigKey& key, Choice found) {
  if (static_cast<std::size_t>(found) >= enum_names<Choice>.size())
    throw ConfigError(fmt::format("{}: found {}, expected one of {}", key.name, static_cast<int>(found),
                                  fmt::join(enum_names<Choice>, ", ")));
}

}  // namespace

double Config::scale() const {
  return softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim_qk)));
}

std::int64_t Config::summaries_of(std::int64_t length) const {
  return length < compress_block ? 0 : (length - compress_block) / compress_stride + 1;
}

std::int64_t Config::blocks_of(std::int64_t length) const {
  return (length + select_block - 1) / select_block;
}

Config Config::with_defaults() const {
  Config config = *this;
  if (compressor != Compressor::mlp) return config;
  const auto fill = [](std::int64_t& width, std::int64_t dim) {
    if (width == 0 && dim <= schema::max_extent) width = 2 * dim;  // validate() refuses a larger one
  };
  fill(config.compress_hidden_k, head_dim_qk);
  fill(config.compress_hidden_v, head_dim_v);
  return config;
}

void Config::validate() const {
  schema::for_each_key(*this, [&](const schema::ConfigKey& key, const auto& value) {
    if (!key.hidden_width || compressor == Compressor::mlp) check(key, value);
  });
  require(num_q_heads % num_kv_heads == 0, "num_q_heads", num_q_heads,
          fmt::format("a multiple of num_kv_heads = {}", num_kv_heads));
  require(compress_block % compress_stride == 0, "compress_stride", compress_stride,
          fmt::format("a divisor of compress_block = {}", compress_block));
  require(select_block % compress_stride == 0, "compress_stride", compress_stride,
          fmt::format("a divisor of select_block = {}", select_block));
  require(compress_block <= select_block, "compress_block", compress_block,
          fmt::format("at most select_block = {}", select_block));
  require(init_blocks + local_blocks <= select_count, "init_blocks + local_blocks", init_blocks + local_blocks,
          fmt::format("at most select_count = {}", select_count));
}

std::string Config::describe() const {
  std::string text;
  schema::for_each_key(*this, [&](const schema::ConfigKey& key, const auto& value) {
    if (!text.empty()) text += ' ';
    if constexpr (std::is_same_v<decltype(value), const std::int64_t&>)
      text += fmt::format("{}={}", key.name, value);
    else if constexpr (std::is_same_v<decltype(value), const std::optional<double>&>)
      text += fmt::format("{}={}", key.name, scale());
    else
      text += fmt::format("{}={}", key.name, name_of(value));
  });
  return text;
}

}  // namespace cpnsa
