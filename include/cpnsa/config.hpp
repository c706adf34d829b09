#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cpnsa/names.hpp"

namespace cpnsa {

enum class Compressor { mean, linear, mlp };
constexpr auto names_of(Compressor) {
  return std::to_array<std::string_view>({"mean", "linear", "mlp"});
}

enum class Activation { silu, relu, gelu };  ///< gelu is the tanh form
constexpr auto names_of(Activation) {
  return std::to_array<std::string_view>({"silu", "relu", "gelu"});
}

enum class GateKind { logits, values };  ///< logits: the library applies the sigmoid; values: used as they are
constexpr auto names_of(GateKind) {
  return std::to_array<std::string_view>({"logits", "values"});
}

/// The branches that a layer has. One that is off costs nothing and adds 0: its gates, keys and values are not read,
/// and their gradients are 0. Without the compressed branch its scores are still computed where they select blocks.
enum class BranchSet { all, cmp_slc, cmp_win, slc_win, cmp, slc, win };
constexpr auto names_of(BranchSet) {
  return std::to_array<std::string_view>({"all", "cmp_slc", "cmp_win", "slc_win", "cmp", "slc", "win"});
}

/// Hyperparameters of one Native Sparse Attention layer (arXiv 2502.11089). The member names are the keys of
/// config.json; schema.hpp lists them, docs/algorithm.md has the formulas they appear in.
struct Config {
  std::int64_t num_q_heads = 0;   ///< H
  std::int64_t num_kv_heads = 0;  ///< G, divides H; query head h reads KV head h / (H / G)
  std::int64_t head_dim_qk = 0;   ///< d_qk
  std::int64_t head_dim_v = 0;    ///< d_v, need not equal d_qk

  std::int64_t compress_block = 32;   ///< l, tokens that a summary covers, at most m
  std::int64_t compress_stride = 16;  ///< s, distance of summaries in tokens, divides l and m
  std::int64_t select_block = 64;     ///< m, tokens of a selection block
  std::int64_t select_count = 16;     ///< n, blocks that a query selects, including the forced ones
  std::int64_t init_blocks = 1;       ///< forced blocks at the start of the document
  std::int64_t local_blocks = 2;      ///< forced blocks that end with the query's own block
  std::int64_t window = 512;          ///< w, tokens of the sliding window, including the query's own

  std::optional<double> softmax_scale;  ///< 1/sqrt(d_qk) unless set

  Compressor compressor = Compressor::mlp;
  Activation activation = Activation::silu;  ///< activation of the mlp compressor
  GateKind gate = GateKind::logits;
  BranchSet branches = BranchSet::all;

  /// Width of the mlp compressors' hidden layer, for keys and for values; 0 stands for twice the head dimension.
  /// Ignored unless compressor == mlp. No keys of config.json: `cpnsa run` reads them off the shape of w1.
  std::int64_t compress_hidden_k = 0;
  std::int64_t compress_hidden_v = 0;

  /// Tells whether the layer has the compressed (0), selected (1) or window branch (2).
  constexpr bool has_branch(int branch) const {
    constexpr int sets[] = {7, 3, 5, 6, 1, 2, 4};  // bit b: branch b, in the order of BranchSet
    return (sets[static_cast<int>(branches)] >> branch & 1) != 0;
  }
  std::int64_t heads_per_group() const { return num_q_heads / num_kv_heads; }  ///< R
  double scale() const;                                                        ///< softmax_scale, or 1 / sqrt(d_qk)
  std::int64_t summaries_of(std::int64_t length) const;                        ///< C of a document of `length` tokens
  std::int64_t blocks_of(std::int64_t length) const;  ///< selection blocks of a document; the last may be partial

  /// The same with the widths that 0 stands for filled in, if the compressor is mlp.
  Config with_defaults() const;

  /// Throws ConfigError naming the key, the value found and the value expected.
  void validate() const;

  /// Every key and value on one line, in a fixed order: what ranks compare to be sure they agree.
  std::string describe() const;
};

}  // namespace cpnsa
