#pragma once

// The ops of a Device that decode over a paged KV cache (docs/inference.md), and the list of all ops.
//
// Symbols are those of ops.hpp, and: `tokens` rows in the step's tensors; B sequences in the step's batch; e = l / s
// - 1. "acc" is accumulate_dtype(dtype). The ops of a step run in the order of this file on one stream. No result
// depends on the other sequences of the batch, on which pages hold a sequence, or on `tokens`, B and max_length: a
// device that splits a sum does so at fixed positions of the sequence.
//
// A page id outside [0, pages), or a column outside a table, stands for a page that the rank does not hold: its rows
// are neither read nor written, and no query sees them.

#include <cstdint>

#include "cpnsa/ops.hpp"

namespace cpnsa {

/// One branch's keys and values in pages. Page p of a sequence holds the tokens [p page, (p + 1) page). Rank p % ranks
/// holds it, in the page whose id is in column p / ranks of the sequence's row of the table.
///
/// A page's rows: first its `page` tokens; then, if edge > 0, the `edge` tokens before the page; then, in `k` alone,
/// the `edge` tokens after the page. Keys and values have page + 2 edge and page + edge rows. A rank that holds every
/// edge can compute the summaries of its pages without messages.
struct PagedRows {
  void* k = nullptr;                    ///< [pages, page + 2 edge, G, d_qk]
  void* v = nullptr;                    ///< [pages, page + edge, G, d_v]
  std::int64_t pages = 0;               ///< in the pools k and v
  const std::int32_t* table = nullptr;  ///< [slots, columns], page ids
  std::int64_t columns = 0;
  std::int64_t page = 0;   ///< tokens of a page, a multiple of m
  std::int64_t edge = 0;   ///< 0, or l - s
  std::int64_t rank = 0;   ///< this rank among `ranks`
  std::int64_t ranks = 1;  ///< ranks that the pages are dealt to

  std::int64_t k_rows() const { return page + 2 * edge; }
  std::int64_t v_rows() const { return page + edge; }
};

/// The summaries in pages. Stride x of a sequence is its tokens [x s, (x + 1) s); summary i = x - e is the one that
/// ends with stride x, and x is its number here, so a page of tokens and the summaries that end in it depend on no
/// later token. Token page p brings the summaries x in [p strides, (p + 1) strides) to the rank that holds it,
/// followed, in `k` alone, by the next `repeated` ones, which overlap the page's last block. The rows of the rank's
/// token pages follow one another, strides + repeated for each: row r of these is row r % page of the page whose id is
/// in column r / page of the sequence's row of the table. Rows with x < e are not used.
struct PagedSummaries {
  void* k = nullptr;                    ///< [pages, page, G, d_qk]
  void* v = nullptr;                    ///< [pages, page, G, d_v]
  std::int64_t pages = 0;               ///< in the pools k and v
  const std::int32_t* table = nullptr;  ///< [slots, columns], page ids
  std::int64_t columns = 0;
  std::int64_t page = 0;      ///< summaries of a page
  std::int64_t strides = 0;   ///< strides of a token page: its tokens / s
  std::int64_t repeated = 0;  ///< 0 if one rank holds all summaries, else e
  std::int64_t rank = 0;      ///< this rank among `ranks`
  std::int64_t ranks = 1;     ///< ranks that the token pages are dealt to
};

/// The sizes of a decoder that Device::decode_scratch_bytes() and decode_schedule_bytes() depend on.
struct DecodeSize {
  const Config* config = nullptr;
  DType dtype = DType::f32;
  std::int64_t max_sequences = 0;
  std::int64_t max_tokens = 0;  ///< of all sequences in one step
  std::int64_t max_length = 0;  ///< tokens of a sequence, those of the step included
  std::int64_t ranks = 1;       ///< ranks that the pages are dealt to
  bool replicated_summaries = false;
};

/// The arguments that the ops of a decoding step have in common. `scratch` (Device::decode_scratch_bytes()) belongs to
/// the step from its first op to its last, so an op may leave there what a later op of the same step reads.
struct DecodeContext : OpContext {
  const void* schedule = nullptr;  ///< written by PrepareDecode; Device::decode_schedule_bytes()
  std::int64_t sequences = 0;      ///< B, at most DecodeSize::max_sequences
  std::int64_t tokens = 0;         ///< rows of the step's tensors, at most DecodeSize::max_tokens
  std::int64_t max_length = 0;     ///< DecodeSize::max_length
};

/// Prepares a step for all layers: reads the batch and writes a schedule, in a form of the device's own.
///
/// Sequence b of the batch is row slots[b] of the page tables. It has lengths[slots[b]] tokens before the step and
/// appends the rows [cu_q[b], cu_q[b + 1]) of the step's tensors, one position after another. The op trusts none of
/// these numbers: a sequence whose slot is outside [0, num_slots), whose rows are outside [0, tokens), or whose length
/// is negative or would exceed max_length has no rows in the schedule.
struct PrepareDecode : OpContext {
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;
  std::int64_t max_length = 0;
  std::int64_t num_slots = 0;
  const std::int32_t* slots = nullptr;    ///< [B]; null: sequence b has slot b
  const std::int32_t* lengths = nullptr;  ///< [num_slots]
  const std::int32_t* cu_q = nullptr;     ///< [B + 1]
  void* schedule = nullptr;               ///< written
};

/// Writes the keys and values of the step's rows to the cache, edges included. Branches whose pools are the same memory
/// are written once.
struct DecodeAppend : DecodeContext {
  const void* k_cmp = nullptr;  ///< [tokens, G, d_qk]
  const void* k_slc = nullptr;  ///< [tokens, G, d_qk]
  const void* k_win = nullptr;  ///< [tokens, G, d_qk]
  const void* v_cmp = nullptr;  ///< [tokens, G, d_v]
  const void* v_slc = nullptr;  ///< [tokens, G, d_v]
  const void* v_win = nullptr;  ///< [tokens, G, d_v]
  PagedRows cmp;
  PagedRows slc;
  PagedRows win;
};

/// Computes the summaries that the step's rows complete (those whose last token is one of the rows), of keys and
/// values, with the arithmetic of Compress. Reads the rows of `cmp` that DecodeAppend wrote, in this step or before.
struct DecodeCompress : DecodeContext {
  CompressorPointers k_parameters;
  CompressorPointers v_parameters;
  PagedRows cmp;
  PagedSummaries summaries;
};

/// o_cmp and its log-sum-exp over the visible summaries that this rank holds, repeated ones left out: summary x is
/// visible to t if e <= x < (t + 1) / s. A row that sees none gets output 0 and log-sum-exp -infinity.
struct DecodeCompressedAttention : DecodeContext {
  const void* q = nullptr;  ///< [tokens, H, d_qk]
  PagedSummaries summaries;
  void* out = nullptr;          ///< acc [tokens, H, d_v]
  void* log_sum_exp = nullptr;  ///< acc [tokens, H], natural logarithm
};

/// The best blocks of each row and KV head among those whose tokens this rank holds ("Importance" and "Selection").
/// With `selected`, the n selected blocks: forced blocks, best candidates, ascending, padded with -1; one rank then
/// holds all summaries. With `scores` and `candidates` instead, the best n of the blocks that are not forced, padded
/// with candidate -1, none for a row that has at most n causal blocks; the blocks are those of the rank's token pages.
struct DecodeSelectBlocks : DecodeContext {
  const void* q = nullptr;            ///< [tokens, H, d_qk]
  const void* log_sum_exp = nullptr;  ///< acc [tokens, H], of the compressed branch, over all ranks
  PagedSummaries summaries;
  std::int32_t* selected = nullptr;    ///< [tokens, G, n]
  void* scores = nullptr;              ///< acc [tokens, G, n]
  std::int32_t* candidates = nullptr;  ///< [tokens, G, n], block indices
};

/// Attention over tokens of the cache: the window branch, the selected branch, or both, over the tokens that this rank
/// holds. If `out` is given, the op also does the gate: out = g0 o_cmp + g1 o_slc + g2 o_win.
struct DecodeTokenAttention : DecodeContext {
  const void* q = nullptr;  ///< [tokens, H, d_qk]
  PagedRows slc;
  PagedRows win;
  bool selected_branch = true;
  bool window_branch = true;
  const std::int32_t* selected = nullptr;  ///< [tokens, G, n]
  void* o_slc = nullptr;                   ///< acc [tokens, H, d_v]; null: not wanted
  void* o_win = nullptr;                   ///< acc [tokens, H, d_v]; null: not wanted
  void* lse_slc = nullptr;                 ///< acc [tokens, H]; null: not wanted
  void* lse_win = nullptr;                 ///< acc [tokens, H]; null: not wanted
  const void* gate = nullptr;              ///< [tokens, H, 3], with `out`
  const void* o_cmp = nullptr;             ///< acc [tokens, H, d_v], with `out`
  void* out = nullptr;                     ///< [tokens, H, d_v]; null: no gate
};

/// A tensor of every rank in gathered memory: that of rank r is at `first` + r stride, in bytes.
struct RankParts {
  const void* first = nullptr;
  std::int64_t stride = 0;
};

/// log_sum_exp = log of the sum over the ranks, ascending, of exp(parts); -infinity where that of every rank is.
struct DecodeMergeSums : DecodeContext {
  std::int64_t ranks = 1;
  RankParts parts;              ///< acc [tokens, H]
  void* log_sum_exp = nullptr;  ///< acc [tokens, H]
};

/// The n selected blocks of each row from all ranks' candidates, as DecodeSelectBlocks on one rank finds them.
struct DecodeMergeCandidates : DecodeContext {
  std::int64_t ranks = 1;
  RankParts scores;                  ///< acc [tokens, G, n]
  RankParts candidates;              ///< int32 [tokens, G, n]
  std::int32_t* selected = nullptr;  ///< [tokens, G, n]
};

/// This rank's part of the gated compressed and window branches: the sum over both of g exp(own log-sum-exp - that of
/// all ranks) o. A branch of which the rank holds nothing (own log-sum-exp -infinity) adds nothing, not even NaN.
struct DecodeWeighParts : DecodeContext {
  const void* gate = nullptr;         ///< [tokens, H, 3]
  const void* o_cmp = nullptr;        ///< acc [tokens, H, d_v]
  const void* o_win = nullptr;        ///< acc [tokens, H, d_v]
  const void* lse_cmp = nullptr;      ///< acc [tokens, H], of this rank
  const void* lse_win = nullptr;      ///< acc [tokens, H], of this rank
  const void* all_lse_cmp = nullptr;  ///< acc [tokens, H], of all ranks
  const void* all_lse_win = nullptr;  ///< acc [tokens, H], of all ranks
  void* out = nullptr;                ///< acc [tokens, H, d_v]
};

/// The output from all ranks' parts: out = sum over the ranks of `weighted`, + g1 o_slc, with o_slc merged from the
/// ranks' parts by their log-sum-exps; + g2 o_win, merged in the same way, if it is given; + g0 o_cmp, if o_cmp is
/// given. Ranks are added in ascending order; a rank whose log-sum-exp is -infinity adds nothing, not even NaN.
struct DecodeMergeParts : DecodeContext {
  std::int64_t ranks = 1;
  const void* gate = nullptr;   ///< [tokens, H, 3]
  RankParts weighted;           ///< acc [tokens, H, d_v], of DecodeWeighParts; null: none
  RankParts o_slc;              ///< acc [tokens, H, d_v]
  RankParts lse_slc;            ///< acc [tokens, H]
  RankParts o_win;              ///< acc [tokens, H, d_v]; null: none
  RankParts lse_win;            ///< acc [tokens, H]; null: none
  const void* o_cmp = nullptr;  ///< acc [tokens, H, d_v]; null: none
  void* out = nullptr;          ///< [tokens, H, d_v]
  void* all_lse_slc = nullptr;  ///< acc [tokens, H], merged; null: not wanted
  void* all_lse_win = nullptr;  ///< acc [tokens, H], merged, with o_win; null: not wanted
};

/// The ops that decode.
using DecodeOps =
    OpList<PrepareDecode, DecodeAppend, DecodeCompress, DecodeCompressedAttention, DecodeSelectBlocks,
           DecodeTokenAttention, DecodeMergeSums, DecodeMergeCandidates, DecodeWeighParts, DecodeMergeParts>;

template <class First, class Second>
struct JoinedOps;
template <class... First, class... Second>
struct JoinedOps<OpList<First...>, OpList<Second...>> {
  using type = OpList<First..., Second...>;
};

/// The ops of a Device that reach this rank's memory alone, by their structs of arguments. AllOps, in device.hpp, are
/// these and those of pull_ops.hpp.
using DeviceOps = JoinedOps<LayerOps, DecodeOps>::type;

}  // namespace cpnsa
