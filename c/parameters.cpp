#include "c/parameters.hpp"

#include <fmt/format.h>

#include <array>
#include <span>
#include <type_traits>

namespace cpnsa::c {
namespace {

constexpr std::size_t longest_struct = 65536;

// Enums of the interface count from 1, in the order of these.
constexpr std::array dtypes{DType::f64, DType::f32, DType::bf16, DType::f16};
constexpr std::array compressors{Compressor::mean, Compressor::linear, Compressor::mlp};
constexpr std::array activations{Activation::silu, Activation::relu, Activation::gelu};
constexpr std::array gates{GateKind::logits, GateKind::values};
constexpr std::array exchanges{Exchange::automatic, Exchange::fetch, Exchange::gather};

template <class Values>
auto choose(const Values& values, std::int32_t number, const std::string& name) {
  if (number >= 1 && number <= static_cast<std::int32_t>(values.size()))
    return values[static_cast<std::size_t>(number - 1)];
  std::string expected;
  for (std::size_t i = 0; i < values.size(); ++i)
    expected += fmt::format("{}{} ({})", i == 0 ? "" : ", ", i + 1, name_of(values[i]));
  throw ArgumentError(fmt::format("{}: found {}, expected one of {}", name, number, expected));
}

bool to_bool(std::int32_t number, const char* name) {
  if (number != 0 && number != 1) throw ArgumentError(fmt::format("{}: found {}, expected 0 or 1", name, number));
  return number == 1;
}

BranchTensors to_branches(const cpnsa_branches& tensors, const std::string& name) {
  return {to_view(tensors.cmp, name + "_cmp"), to_view(tensors.slc, name + "_slc"),
          to_view(tensors.win, name + "_win")};
}

CompressorTensors to_compressor(const cpnsa_compressor_tensors& tensors, const std::string& name) {
  return {to_view(tensors.pos, name + "_pos"), to_view(tensors.weight, name + "_weight"),
          to_view(tensors.w1, name + "_w1"),   to_view(tensors.b1, name + "_b1"),
          to_view(tensors.w2, name + "_w2"),   to_view(tensors.b2, name + "_b2")};
}

// Inputs and gradients have members of the same names; `prefix` is what tells them in messages.
template <class Views>
Views to_views(const cpnsa_tensors* given, const char* name, const std::string& prefix) {
  const cpnsa_tensors tensors = read<cpnsa_tensors>(given, CPNSA_TENSORS_INIT, sizeof(cpnsa_tensors), name);
  Views views;
  views.q = to_view(tensors.q, prefix + "q");
  views.k = to_branches(tensors.k, prefix + "k");
  views.v = to_branches(tensors.v, prefix + "v");
  views.gate = to_view(tensors.gate, prefix + "gate");
  views.compress_k = to_compressor(tensors.compress_k, prefix + "compress_k");
  views.compress_v = to_compressor(tensors.compress_v, prefix + "compress_v");
  return views;
}

/// A member that a later version may give a meaning.
void check_reserved(std::int32_t found, const char* name) {
  if (found != 0) throw ArgumentError(fmt::format("{}.reserved: found {}, expected 0", name, found));
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

Config to_config(const cpnsa_config* given) {
  const auto config = read<cpnsa_config>(given, CPNSA_CONFIG_INIT, sizeof(cpnsa_config), "config");
  Config result;
  result.num_q_heads = config.num_q_heads;
  result.num_kv_heads = config.num_kv_heads;
  result.head_dim_qk = config.head_dim_qk;
  result.head_dim_v = config.head_dim_v;
  result.compress_block = config.compress_block;
  result.compress_stride = config.compress_stride;
  result.select_block = config.select_block;
  result.select_count = config.select_count;
  result.init_blocks = config.init_blocks;
  result.local_blocks = config.local_blocks;
  result.window = config.window;
  if (config.softmax_scale != 0) result.softmax_scale = config.softmax_scale;
  result.compressor = choose(compressors, config.compressor, "compressor");
  result.activation = choose(activations, config.activation, "activation");
  result.gate = choose(gates, config.gate, "gate");
  result.compress_hidden_k = config.compress_hidden_k;
  result.compress_hidden_v = config.compress_hidden_v;
  check_reserved(config.reserved, "config");
  return result;
}

AttentionOptions to_options(const cpnsa_options* given) {
  const auto options = read<cpnsa_options>(given, CPNSA_OPTIONS_INIT, offsetof(cpnsa_options, reuse_saved), "options");
  AttentionOptions result;
  result.dtype = choose(dtypes, options.dtype, "dtype");
  result.exchange = choose(exchanges, options.exchange, "exchange");
  if (options.gradient_dtype != 0) result.gradient_dtype = choose(dtypes, options.gradient_dtype, "gradient_dtype");
  if (options.parameter_gradient_dtype != 0)
    result.parameter_gradient_dtype = choose(dtypes, options.parameter_gradient_dtype, "parameter_gradient_dtype");
  result.backward = to_bool(options.backward, "backward");
  result.refetch_blocks = to_bool(options.refetch_blocks, "refetch_blocks");
  result.recompute_branches = to_bool(options.recompute_branches, "recompute_branches");
  result.sum_parameter_gradients = to_bool(options.sum_parameter_gradients, "sum_parameter_gradients");
  result.timing = to_bool(options.timing, "timing");
  result.reuse_saved = to_bool(options.reuse_saved, "reuse_saved");
  return result;
}

TensorView to_view(const cpnsa_tensor& tensor, const std::string& name) {
  if (tensor.rank == 0) return {};
  if (tensor.rank < 0 || tensor.rank > TensorView::max_rank)
    throw ArgumentError(fmt::format("{}.rank: found {}, expected 0 for no tensor, or 1 to {}", name, tensor.rank,
                                    TensorView::max_rank));
  TensorView view;
  view.data = tensor.data;
  view.dtype = choose(dtypes, tensor.dtype, name + ".dtype");
  view.rank = tensor.rank;
  std::copy_n(tensor.shape, tensor.rank, view.shape.begin());
  view.given = true;
  return view;
}

AttentionInputs to_inputs(const cpnsa_tensors* tensors) {
  return to_views<AttentionInputs>(tensors, "inputs", "");
}

AttentionGradients to_gradients(const cpnsa_tensors* tensors) {
  return to_views<AttentionGradients>(tensors, "gradients", "d");
}

void write(const Statistics& statistics, cpnsa_statistics* out) {
  cpnsa_statistics result{};
  static_assert(std::extent_v<decltype(result.bytes_received)> >= traffic_kinds);
  static_assert(std::extent_v<decltype(result.seconds)> >= stage_count);
  const std::size_t size = not_null(out, "statistics").struct_size;
  check_struct_size("statistics", size, sizeof result, sizeof result);
  result.struct_size = size;
  result.exchange = static_cast<std::int32_t>(std::find(exchanges.begin(), exchanges.end(), statistics.exchange) -
                                              exchanges.begin() + 1);
  result.blocks_needed = statistics.blocks_needed;
  result.blocks_fetched = statistics.blocks_fetched;
  result.workspace_bytes = statistics.workspace_bytes;
  std::copy(statistics.bytes_received.begin(), statistics.bytes_received.end(), result.bytes_received);
  std::copy(statistics.bytes_predicted.begin(), statistics.bytes_predicted.end(), result.bytes_predicted);
  std::copy(statistics.seconds.begin(), statistics.seconds.end(), result.seconds);
  std::memcpy(out, &result, std::min(size, sizeof result));
}

}  // namespace cpnsa::c
