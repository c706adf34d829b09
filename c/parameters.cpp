#include "c/parameters.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <optional>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include "c/enumerators.hpp"
#include "cpnsa/kv_cache.hpp"

namespace cpnsa::c {
namespace {

constexpr std::size_t longest_struct = 65536;

// Enums of the interface count from 1 what the library's count from 0.
static_assert(matches<DType, cpnsa_dtype>("CPNSA_"));
static_assert(matches<Compressor, cpnsa_compressor>("CPNSA_COMPRESSOR_"));
static_assert(matches<Activation, cpnsa_activation>("CPNSA_ACTIVATION_"));
static_assert(matches<GateKind, cpnsa_gate>("CPNSA_GATE_"));
static_assert(matches<BranchSet, cpnsa_branch_set>("CPNSA_BRANCH_SET_"));
static_assert(matches<Exchange, cpnsa_exchange>("CPNSA_EXCHANGE_"));
static_assert(matches<PartitionKind, cpnsa_partition_kind>("CPNSA_PARTITION_"));
static_assert(matches<CachePart, cpnsa_cache_part>("CPNSA_CACHE_"));

/// A member that a later version may give a meaning.
void check_reserved(std::int32_t found, const char* name) {
  if (found != 0) throw ArgumentError(fmt::format("{}.reserved: found {}, expected 0", name, found));
}

// Inputs and gradients have members of the same names; `name_of_tensor` is what messages call one.
template <class Views, class NameOfTensor>
Views to_views(const cpnsa_tensors* given, const char* name, const NameOfTensor& name_of_tensor) {
  const cpnsa_tensors tensors = read<cpnsa_tensors>(given, CPNSA_TENSORS_INIT, offsetof(cpnsa_tensors, layer), name);
  Views views;
  schema::for_each_tensor([&](const schema::Tensor& tensor, TensorView& to,
                              const cpnsa_tensor& from) { to = to_view(from, name_of_tensor(tensor).str()); },
                          views, tensors);
  check_reserved(tensors.reserved, name);
  if constexpr (std::is_same_v<Views, AttentionInputs>) {
    views.layer = tensors.layer;
    views.summary_rotation = {to_view(tensors.rotation_cos, "rotation_cos"),
                              to_view(tensors.rotation_sin, "rotation_sin"),
                              to_bool(tensors.rotation_interleaved, "rotation_interleaved")};
    views.selected = tensors.selected;
  }
  return views;
}

// The members of cpnsa_config, in the order of schema::config_keys.
constexpr std::tuple config_members{&cpnsa_config::num_q_heads,
                                    &cpnsa_config::num_kv_heads,
                                    &cpnsa_config::head_dim_qk,
                                    &cpnsa_config::head_dim_v,
                                    &cpnsa_config::compress_block,
                                    &cpnsa_config::compress_stride,
                                    &cpnsa_config::select_block,
                                    &cpnsa_config::select_count,
                                    &cpnsa_config::init_blocks,
                                    &cpnsa_config::local_blocks,
                                    &cpnsa_config::window,
                                    &cpnsa_config::softmax_scale,
                                    &cpnsa_config::compressor,
                                    &cpnsa_config::activation,
                                    &cpnsa_config::gate,
                                    &cpnsa_config::branches,
                                    &cpnsa_config::compress_hidden_k,
                                    &cpnsa_config::compress_hidden_v};

// The members of cpnsa_options, in the order of schema::option_keys.
constexpr std::tuple option_members{&cpnsa_options::dtype,
                                    &cpnsa_options::exchange,
                                    &cpnsa_options::gradient_dtype,
                                    &cpnsa_options::parameter_gradient_dtype,
                                    &cpnsa_options::backward,
                                    &cpnsa_options::refetch_blocks,
                                    &cpnsa_options::recompute_branches,
                                    &cpnsa_options::reuse_saved,
                                    &cpnsa_options::sum_parameter_gradients,
                                    &cpnsa_options::timing,
                                    &cpnsa_options::compare_parameters,
                                    &cpnsa_options::compressed_query,
                                    &cpnsa_options::sinks,
                                    &cpnsa_options::given_selection};

void set(std::string_view, std::int64_t& to, std::int64_t from) {
  to = from;
}
void set(std::string_view, std::optional<double>& to, double from) {
  if (from != 0) to = from;
}
template <NamedEnum Enum>
void set(std::string_view key, Enum& to, std::int32_t from) {
  to = to_enum<Enum>(from, std::string(key));
}
void set(std::string_view key, std::optional<DType>& to, std::int32_t from) {
  if (from != 0) to = to_enum<DType>(from, std::string(key));
}
void set(std::string_view key, bool& to, std::int32_t from) {
  to = to_bool(from, key);
}

/// Sets the members that `keys` lists, of the library's struct, from those that `members` lists, of the interface's.
template <const auto& keys, const auto& members, class To, class From>
void set_all(To& to, const From& from) {
  constexpr std::size_t count = keys.size();
  static_assert(count == std::tuple_size_v<std::remove_cvref_t<decltype(members)>>);
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    (set(keys[i].name, to.*std::get<keys[i].member.index()>(keys[i].member), from.*std::get<i>(members)), ...);
  }
  (std::make_index_sequence<count>());
}

}  // namespace

void check_struct_size(const char* name, std::size_t found, std::size_t first, std::size_t known) {
  if (found >= first && found <= longest_struct) return;
  throw ArgumentError(
      fmt::format("{}.struct_size: found {}, expected {}: set the struct up by its _INIT macro", name, found, known));
}

void check_unknown_members(const char* name, const void* given, std::size_t size, std::size_t known) {
  if (size <= known) return;
  const std::span rest(static_cast<const unsigned char*>(given) + known, size - known);
  if (std::any_of(rest.begin(), rest.end(), [](unsigned char byte) { return byte != 0; }))
    throw UnsupportedError(fmt::format(
        "{}: found members behind its {} bytes set, expected 0: they are of a newer version than this library's", name,
        known));
}

bool to_bool(std::int32_t number, std::string_view name) {
  if (number != 0 && number != 1) throw ArgumentError(fmt::format("{}: found {}, expected 0 or 1", name, number));
  return number == 1;
}

Config to_config(const cpnsa_config* given) {
  const auto config = read<cpnsa_config>(given, CPNSA_CONFIG_INIT, sizeof(cpnsa_config), "config");
  Config result;
  set_all<schema::config_keys, config_members>(result, config);
  return result;
}

namespace {

void put(std::int64_t& to, std::int64_t from) {
  to = from;
}
void put(double& to, const std::optional<double>& from) {
  to = from.value_or(0);
}
template <NamedEnum Enum>
void put(std::int32_t& to, Enum from) {
  to = to_number(from);
}

template <std::size_t... i>
void put_all(cpnsa_config& to, const Config& from, std::index_sequence<i...>) {
  constexpr auto& keys = schema::config_keys;
  (put(to.*std::get<i>(config_members), from.*std::get<keys[i].member.index()>(keys[i].member)), ...);
}

}  // namespace

void write(const Config& config, cpnsa_config* out) {
  const std::size_t size = not_null(out, "config").struct_size;
  check_struct_size("config", size, sizeof(cpnsa_config), sizeof(cpnsa_config));
  put_all(*out, config, std::make_index_sequence<schema::config_keys.size()>());
}

AttentionOptions to_options(const cpnsa_options* given) {
  const auto options = read<cpnsa_options>(given, CPNSA_OPTIONS_INIT, offsetof(cpnsa_options, reuse_saved), "options");
  AttentionOptions result;
  set_all<schema::option_keys, option_members>(result, options);
  return result;
}

TensorView to_view(const cpnsa_tensor& tensor, const std::string& name) {
  if (tensor.rank == 0) return {};
  if (tensor.rank < 0 || tensor.rank > TensorView::max_rank)
    throw ArgumentError(fmt::format("{}.rank: found {}, expected 0 for no tensor, or 1 to {}", name, tensor.rank,
                                    TensorView::max_rank));
  TensorView view;
  view.data = tensor.data;
  view.dtype = to_enum<DType>(tensor.dtype, name + ".dtype");
  view.rank = tensor.rank;
  std::copy_n(tensor.shape, tensor.rank, view.shape.begin());
  view.given = true;
  return view;
}

AttentionInputs to_inputs(const cpnsa_tensors* tensors) {
  return to_views<AttentionInputs>(tensors, "inputs", [](const schema::Tensor& tensor) { return tensor.name; });
}

Outputs to_outputs(const cpnsa_outputs* given) {
  const auto outputs = read<cpnsa_outputs>(given, CPNSA_OUTPUTS_INIT, sizeof(cpnsa_outputs), "outputs");
  return {to_view(outputs.out, "out"),
          outputs.selected,
          {to_view(outputs.log_sum_exp.cmp, "log_sum_exp.cmp"), to_view(outputs.log_sum_exp.slc, "log_sum_exp.slc"),
           to_view(outputs.log_sum_exp.win, "log_sum_exp.win")}};
}

AttentionGradients to_gradients(const cpnsa_tensors* tensors) {
  return to_views<AttentionGradients>(tensors, "gradients",
                                      [](const schema::Tensor& tensor) { return tensor.gradient_name(); });
}

void write(const Statistics& statistics, cpnsa_statistics* out) {
  cpnsa_statistics result{};
  static_assert(std::extent_v<decltype(result.bytes_received)> >= traffic_kinds);
  static_assert(std::extent_v<decltype(result.seconds)> >= stage_count);
  const std::size_t size = not_null(out, "statistics").struct_size;
  check_struct_size("statistics", size, sizeof result, sizeof result);
  result.struct_size = size;
  result.exchange = to_number(statistics.exchange);
  result.blocks_needed = statistics.blocks_needed;
  result.blocks_fetched = statistics.blocks_fetched;
  result.workspace_bytes = statistics.workspace_bytes;
  std::copy(statistics.bytes_received.begin(), statistics.bytes_received.end(), result.bytes_received);
  std::copy(statistics.bytes_predicted.begin(), statistics.bytes_predicted.end(), result.bytes_predicted);
  std::copy(statistics.seconds.begin(), statistics.seconds.end(), result.seconds);
  std::memcpy(out, &result, std::min(size, sizeof result));
}

}  // namespace cpnsa::c
