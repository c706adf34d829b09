#pragma once

// The scratch of a step, and with it how work is divided: among many thread blocks where partial results fit in a fixed
// budget, else among few, each of which merges its own partial results in the same order. Results are the same bits.

#include <cstddef>
#include <cstdint>

#include "cpnsa/decode_ops.hpp"
#include "kernels/cuda/decode/schedule.hpp"

namespace cpnsa::cuda::decode {

inline constexpr int part_keys = 256;       ///< tokens that one work item of the token branches attends to
inline constexpr int product_rows = 16;     ///< completed summaries that share a read of the compressor's weights
inline constexpr int product_inputs = 256;  ///< channels of the input that one work item multiplies
inline constexpr int product_columns = 256;

/// The parts of a row's keys in the token branches: first those of the selected branch, then those of the window. Keys
/// of the window are counted from its first token, so parts that lie before token 0 at every position below max_length
/// are left out whole: where a row's keys are cut depends on its position alone.
struct TokenParts {
  int selected;
  int window;
  int window_keys;  ///< of the window's parts

  TokenParts(const Config& config, std::int64_t max_length, bool selected_branch, bool window_branch);
};

/// The first layer of a compressor, of keys or of values: [rows, inputs] x [inputs, outputs] for each KV head.
struct FirstLayer {
  int inputs;   ///< l d
  int outputs;  ///< d, or the hidden width
  int splits;   ///< of the inputs
  int columns;  ///< tiles of product_columns outputs

  FirstLayer(const Config& config, bool keys);
};

/// A partial result of attention for each (row, head) and part.
struct PartialRows {
  float* out = nullptr;     ///< [tokens, H, parts, d_v], not divided by the sum
  float2* state = nullptr;  ///< [tokens, H, parts]: maximum (base 2), sum
  int parts = 0;
  bool split = false;  ///< false: one work item for all parts, and nothing is stored
};

struct StepScratch {
  float* scores = nullptr;  ///< [tokens, H, score_stride], not scaled; null: the selection computes them again
  std::int64_t score_stride = 0;
  PartialRows chunks;             ///< of the compressed branch
  PartialRows parts;              ///< of the token branches, in the same memory
  std::uint64_t* best = nullptr;  ///< [tokens, G, select_chunks, n]; null: one work item per row and KV head
  float* products = nullptr;      ///< partial products of the first layers; null: one work item for all inputs
  std::size_t bytes = 0;

  StepScratch(void* memory, const Config& config, const Capacity& capacity, bool one_rank);
  /// For an op; `one_rank`: whether the rank holds all summaries.
  StepScratch(const DecodeContext& a, bool one_rank)
      : StepScratch(a.scratch, *a.config, Capacity(*a.config, a.sequences, a.tokens, a.max_length), one_rank) {}
};

}  // namespace cpnsa::cuda::decode
