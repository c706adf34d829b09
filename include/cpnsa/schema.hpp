#pragma once

// The parts of a layer by name: its tensors, the parameters of its compressors, and its hyperparameters. One list
// each, in one order, which the C interface, the Python package, the command and the tests loop over. The names of an
// enum's values are listed beside the enum; names.hpp has enum_names<Activation>, name_of() and value_named().
// docs/adding.md says what else a new entry needs.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "cpnsa/attention.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa::schema {

// --- shapes ----------------------------------------------------------------------------------------------------------

/// The meaning of an extent of a tensor's shape.
enum class Extent {
  tokens,  ///< T of the packed sequence, or the rows of one rank
  num_q_heads,
  num_kv_heads,
  head_dim_qk,
  head_dim_v,
  branches,  ///< 3
  select_count,
  compress_block,
  block_dim_qk,  ///< compress_block * head_dim_qk
  block_dim_v,   ///< compress_block * head_dim_v
  hidden_k,      ///< width of the mlp compressor's hidden layer, for keys
  hidden_v       ///< and for values
};
constexpr auto names_of(Extent) {
  return std::to_array<std::string_view>({"T", "num_q_heads", "num_kv_heads", "head_dim_qk", "head_dim_v", "branches",
                                          "select_count", "compress_block", "compress_block * head_dim_qk",
                                          "compress_block * head_dim_v", "hidden", "hidden"});
}

/// The size of an extent for `tokens` tokens.
constexpr std::int64_t size_of(Extent extent, const Config& config, std::int64_t tokens) {
  switch (extent) {
    case Extent::tokens: return tokens;
    case Extent::num_q_heads: return config.num_q_heads;
    case Extent::num_kv_heads: return config.num_kv_heads;
    case Extent::head_dim_qk: return config.head_dim_qk;
    case Extent::head_dim_v: return config.head_dim_v;
    case Extent::branches: return 3;
    case Extent::select_count: return config.select_count;
    case Extent::compress_block: return config.compress_block;
    case Extent::block_dim_qk: return config.compress_block * config.head_dim_qk;
    case Extent::block_dim_v: return config.compress_block * config.head_dim_v;
    case Extent::hidden_k: return config.compress_hidden_k;
    case Extent::hidden_v: return config.compress_hidden_v;
  }
  return 0;
}

/// At most TensorView::max_rank items: a shape in symbols, or in numbers.
template <class Item>
class ShortList {
 public:
  constexpr ShortList() = default;
  constexpr ShortList(std::initializer_list<Item> items) {
    for (const Item& item : items) push_back(item);
  }
  constexpr void push_back(Item item) { items_[size_++] = item; }
  constexpr std::size_t size() const { return size_; }
  constexpr const Item& operator[](std::size_t i) const { return items_[i]; }
  constexpr const Item* begin() const { return items_.data(); }
  constexpr const Item* end() const { return items_.data() + size_; }
  constexpr operator std::span<const Item>() const { return {items_.data(), size_}; }

 private:
  std::array<Item, TensorView::max_rank> items_{};
  std::size_t size_ = 0;
};

using Shape = ShortList<Extent>;

/// A shape in numbers for `tokens` tokens.
constexpr ShortList<std::int64_t> sizes_of(const Shape& shape, const Config& config, std::int64_t tokens) {
  ShortList<std::int64_t> sizes;
  for (const Extent extent : shape) sizes.push_back(size_of(extent, config, tokens));
  return sizes;
}

// --- tensors ---------------------------------------------------------------------------------------------------------

/// A name of up to 23 letters, made of two parts at compile time: "compress_k_" and "pos".
class Name {
 public:
  constexpr Name() = default;
  constexpr Name(const char* name) : Name(std::string_view(name), {}) {}
  constexpr Name(std::string_view first, std::string_view second) {
    for (const std::string_view part : {first, second})
      for (const char letter : part) text_[size_++] = letter;
  }
  constexpr std::string_view view() const { return {text_.data(), size_}; }
  constexpr operator std::string_view() const { return view(); }
  constexpr const char* c_str() const { return text_.data(); }
  std::string str() const { return std::string(view()); }

 private:
  std::array<char, 24> text_{};
  std::size_t size_ = 0;
};

/// A tensor that a layer is given, of the layer's type. Each has a gradient of the same shape: of
/// AttentionOptions::gradient_dtype if `per_token`, otherwise of parameter_gradient_dtype.
struct Tensor {
  Name name;                            ///< "q", "k_cmp", "compress_k_pos"
  Shape shape;                          ///< in symbols
  bool per_token = true;                ///< sharded by tokens; otherwise a parameter, which every rank holds whole
  bool required = true;                 ///< if the compressor uses it
  std::optional<Compressor> only = {};  ///< the one compressor that uses it; without a value, all do
  std::string_view shared = {};         ///< "k" or "v" for a branch's: what one tensor for all three branches is called
  std::string_view option = {};         ///< the option of AttentionOptions that a layer with this tensor sets

  constexpr bool used_by(Compressor compressor) const { return !only || *only == compressor; }
  constexpr Name gradient_name() const { return {"d", name}; }  ///< "dq"
};

/// The compressed, selected and window branch, in the order of the gate's last extent.
inline constexpr std::array<std::string_view, 3> branches{"cmp", "slc", "win"};

/// The parameters of one compressor, without the prefix "compress_k_" or "compress_v_" in their names.
constexpr std::array<Tensor, 6> compressor_parameters(Extent dim, Extent block_dim, Extent hidden) {
  constexpr Extent heads = Extent::num_kv_heads, block = Extent::compress_block;
  constexpr Compressor linear = Compressor::linear, mlp = Compressor::mlp;
  return {{{.name = "pos", .shape = {heads, block, dim}, .per_token = false, .required = false},
           {.name = "weight", .shape = {heads, block_dim, dim}, .per_token = false, .only = linear},
           {.name = "w1", .shape = {heads, block_dim, hidden}, .per_token = false, .only = mlp},
           {.name = "b1", .shape = {heads, hidden}, .per_token = false, .only = mlp},
           {.name = "w2", .shape = {heads, hidden, dim}, .per_token = false, .only = mlp},
           {.name = "b2", .shape = {heads, dim}, .per_token = false, .only = mlp}}};
}

/// Those of the compressor of keys, and those of the compressor of values.
inline constexpr auto key_parameters =
    compressor_parameters(Extent::head_dim_qk, Extent::block_dim_qk, Extent::hidden_k);
inline constexpr auto value_parameters =
    compressor_parameters(Extent::head_dim_v, Extent::block_dim_v, Extent::hidden_v);

/// The members of one compressor's parameters, side by side in the order of compressor_parameters(): calls
/// visit(i, sets.pos...), and so on, with i from 0. The sets are any structs with members of these names.
template <class Visit, class... Sets>
constexpr void for_each_compressor_member(Visit&& visit, Sets&&... sets) {
  std::size_t i = 0;
  visit(i++, sets.pos...);
  visit(i++, sets.weight...);
  visit(i++, sets.w1...);
  visit(i++, sets.b1...);
  visit(i++, sets.w2...);
  visit(i++, sets.b2...);
}

inline constexpr std::size_t num_token_tensors = 9;
inline constexpr std::size_t num_sinks = 2;

/// The tensors with a row for each token, then the parameters of the compressor of keys, of that of values, and the
/// attention sinks.
inline constexpr std::array tensors = [] {
  constexpr Shape q{Extent::tokens, Extent::num_q_heads, Extent::head_dim_qk};
  constexpr Shape k{Extent::tokens, Extent::num_kv_heads, Extent::head_dim_qk};
  constexpr Shape v{Extent::tokens, Extent::num_kv_heads, Extent::head_dim_v};
  constexpr Shape gate{Extent::tokens, Extent::num_q_heads, Extent::branches};
  constexpr Shape sink{Extent::num_q_heads};
  std::array<Tensor, num_token_tensors + key_parameters.size() + value_parameters.size() + num_sinks> all{
      {{.name = "q", .shape = q},
       {.name = "k_cmp", .shape = k, .shared = "k"},
       {.name = "k_slc", .shape = k, .shared = "k"},
       {.name = "k_win", .shape = k, .shared = "k"},
       {.name = "v_cmp", .shape = v, .shared = "v"},
       {.name = "v_slc", .shape = v, .shared = "v"},
       {.name = "v_win", .shape = v, .shared = "v"},
       {.name = "gate", .shape = gate},
       {.name = "q_cmp", .shape = q, .required = false, .option = "compressed_query"}}};
  Tensor* next = all.data() + num_token_tensors;
  const auto append = [&](const auto& parameters, std::string_view prefix) {
    for (const Tensor& parameter : parameters) {
      *next = parameter;
      next++->name = Name(prefix, parameter.name);
    }
  };
  append(key_parameters, "compress_k_");
  append(value_parameters, "compress_v_");
  for (const char* name : {"sink_slc", "sink_win"})
    *next++ = {.name = name, .shape = sink, .per_token = false, .required = false, .option = "sinks"};
  return all;
}();

/// The shape of out and of its gradient, which have the layer's type, and that of the int32 block indices.
inline constexpr Shape out_shape{Extent::tokens, Extent::num_q_heads, Extent::head_dim_v};
/// The shape of a branch's log-sum-exps, which have the accumulating type.
inline constexpr Shape log_sum_exp_shape{Extent::tokens, Extent::num_q_heads};
inline constexpr Shape selected_shape{Extent::tokens, Extent::num_kv_heads, Extent::select_count};

/// The members of tensor sets, side by side in the order of `tensors`: calls visit(tensor, sets.q...),
/// visit(tensor, sets.k.cmp...), and so on. The sets are any structs with the members of AttentionInputs.
template <class Visit, class... Sets>
constexpr void for_each_token_tensor(Visit&& visit, Sets&&... sets) {
  const Tensor* tensor = tensors.data();
  visit(*tensor++, sets.q...);
  visit(*tensor++, sets.k.cmp...);
  visit(*tensor++, sets.k.slc...);
  visit(*tensor++, sets.k.win...);
  visit(*tensor++, sets.v.cmp...);
  visit(*tensor++, sets.v.slc...);
  visit(*tensor++, sets.v.win...);
  visit(*tensor++, sets.gate...);
  visit(*tensor++, sets.q_cmp...);
}

/// The same for the parameters alone: those of both compressors, and the sinks.
template <class Visit, class... Sets>
constexpr void for_each_parameter(Visit&& visit, Sets&&... sets) {
  const Tensor* tensor = tensors.data() + num_token_tensors;
  const auto next = [&](std::size_t, auto&&... members) { visit(*tensor++, members...); };
  for_each_compressor_member(next, sets.compress_k...);
  for_each_compressor_member(next, sets.compress_v...);
  visit(*tensor++, sets.sink_slc...);
  visit(*tensor++, sets.sink_win...);
}

template <class Visit, class... Sets>
constexpr void for_each_tensor(Visit&& visit, Sets&&... sets) {
  for_each_token_tensor(visit, sets...);
  for_each_parameter(visit, sets...);
}

// --- hyperparameters -------------------------------------------------------------------------------------------------

/// A member of Config. Its default is what Config{} has.
struct ConfigKey {
  using Member = std::variant<std::int64_t Config::*, std::optional<double> Config::*, Compressor Config::*,
                              Activation Config::*, GateKind Config::*, BranchSet Config::*>;

  std::string_view name;  ///< of the member, and of the key in config.json
  Member member;
  std::string_view meaning;   ///< one line for help texts
  std::int64_t min = 0;       ///< the smallest number allowed
  bool required = false;      ///< has no default
  bool hidden_width = false;  ///< read off the parameters' shapes by `cpnsa run`, so not a key of config.json
};

/// The largest number allowed. Keeps products such as T * H * d_qk far from 2^63.
inline constexpr std::int64_t max_extent = std::int64_t{1} << 31;

inline constexpr std::array config_keys{
    ConfigKey{"num_q_heads", &Config::num_q_heads, "query heads, H", 1, true},
    ConfigKey{"num_kv_heads", &Config::num_kv_heads, "KV heads, G; divides H", 1, true},
    ConfigKey{"head_dim_qk", &Config::head_dim_qk, "width of a head of q and k", 1, true},
    ConfigKey{"head_dim_v", &Config::head_dim_v, "width of a head of v and out", 1, true},
    ConfigKey{"compress_block", &Config::compress_block, "tokens that a summary covers, l", 1},
    ConfigKey{"compress_stride", &Config::compress_stride, "tokens between summaries, s; divides l and m", 1},
    ConfigKey{"select_block", &Config::select_block, "tokens of a selection block, m", 1},
    ConfigKey{"select_count", &Config::select_count, "blocks that a query selects, forced ones included, n", 1},
    ConfigKey{"init_blocks", &Config::init_blocks, "forced blocks at the start of the document"},
    ConfigKey{"local_blocks", &Config::local_blocks, "forced blocks that end at the query's own"},
    ConfigKey{"window", &Config::window, "tokens of the sliding window, the query's own included, w", 1},
    ConfigKey{"softmax_scale", &Config::softmax_scale, "factor of the scores; 1 / sqrt(head_dim_qk) unless set"},
    ConfigKey{"compressor", &Config::compressor, "how a block of keys or values becomes a summary"},
    ConfigKey{"activation", &Config::activation, "activation of the mlp compressor"},
    ConfigKey{"gate", &Config::gate,
              "what the gate holds: logits, to which a sigmoid is applied, or values, used as they are"},
    ConfigKey{"branches", &Config::branches, "the branches that the layer has; one that is off costs nothing"},
    ConfigKey{"compress_hidden_k", &Config::compress_hidden_k,
              "width of the mlp compressor's hidden layer for keys; 0 stands for 2 head_dim_qk", 0, false, true},
    ConfigKey{"compress_hidden_v", &Config::compress_hidden_v,
              "width of the mlp compressor's hidden layer for values; 0 stands for 2 head_dim_v", 0, false, true}};

/// Calls visit(key, value) for every key, with the reference to the member of `config`.
template <class AnyConfig, class Visit>
constexpr void for_each_key(AnyConfig& config, Visit&& visit) {
  for (const ConfigKey& key : config_keys) std::visit([&](auto member) { visit(key, config.*member); }, key.member);
}

// --- options ---------------------------------------------------------------------------------------------------------

/// A member of AttentionOptions. Its default is what AttentionOptions{} has.
struct OptionKey {
  using Member = std::variant<bool AttentionOptions::*, DType AttentionOptions::*,
                              std::optional<DType> AttentionOptions::*, Exchange AttentionOptions::*>;

  std::string_view name;
  Member member;
  bool compared = true;  ///< whether ranks that were given different values get a MismatchError
};

inline constexpr std::array option_keys{
    OptionKey{"dtype", &AttentionOptions::dtype},
    OptionKey{"exchange", &AttentionOptions::exchange},
    OptionKey{"gradient_dtype", &AttentionOptions::gradient_dtype},
    OptionKey{"parameter_gradient_dtype", &AttentionOptions::parameter_gradient_dtype},
    OptionKey{"backward", &AttentionOptions::backward},
    OptionKey{"refetch_blocks", &AttentionOptions::refetch_blocks},
    OptionKey{"recompute_branches", &AttentionOptions::recompute_branches},
    OptionKey{"reuse_saved", &AttentionOptions::reuse_saved},
    OptionKey{"sum_parameter_gradients", &AttentionOptions::sum_parameter_gradients},
    OptionKey{"timing", &AttentionOptions::timing, false},
    OptionKey{"compare_parameters", &AttentionOptions::compare_parameters},
    OptionKey{"compressed_query", &AttentionOptions::compressed_query},
    OptionKey{"sinks", &AttentionOptions::sinks},
    OptionKey{"given_selection", &AttentionOptions::given_selection}};

/// Calls visit(key, value) for every option, with the reference to the member of `options`.
template <class AnyOptions, class Visit>
constexpr void for_each_option(AnyOptions&& options, Visit&& visit) {
  for (const OptionKey& key : option_keys) std::visit([&](auto member) { visit(key, options.*member); }, key.member);
}

/// The known name that `name` was probably meant to be: at most two letters, or a third of them, differ. Empty if no
/// name is that near.
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known);

}  // namespace cpnsa::schema
