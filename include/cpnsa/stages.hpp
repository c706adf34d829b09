#pragma once

// The arguments of every stage a Device computes: one small struct a stage, a shape on each pointer.
//
// Symbols are docs/algorithm.md's: H query heads, G KV heads, R = H / G, d_qk and d_v head dimensions, l, s, m, n, w.
// `rows` is the number of this rank's tokens, C the number of summaries of all documents, B the number of selection
// blocks of all documents. Tensors have the layer's type `dtype`; pointers marked "acc" have accumulate_dtype(dtype).
// All pointers are the device's memory; gradients marked "+=" are added to, never overwritten.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/config.hpp"
#include "cpnsa/dtype.hpp"

namespace cpnsa {

/// A maximal run of this rank's consecutive local rows that are consecutive tokens of one document.
struct Segment {
  std::int64_t row;        ///< first local row
  std::int64_t rows;       ///< tokens in the run, at least 1
  std::int64_t position;   ///< position of the first token in its document: t of local row r is position + (r - row)
  std::int64_t block;      ///< index, among all B blocks, of the document's block 0
  std::int64_t summary;    ///< index, among all C summaries, of the document's summary 0
  std::int64_t summaries;  ///< summaries of the document
  std::int64_t halo_row;   ///< row in the window halo of the token at `position - halo_rows`
  std::int64_t halo_rows;  ///< tokens before `position` that windows of this segment reach: min(w - 1, position)
};

/// A rank's segments as a device wants them. Devices derive from it to keep tile lists in their own memory.
class SegmentSchedule {
 public:
  explicit SegmentSchedule(std::span<const Segment> segments);
  virtual ~SegmentSchedule() = default;

  std::vector<Segment> segments;  ///< in the order of local rows, host memory
  std::int64_t rows = 0;          ///< sum of the segments' rows
};

/// A list kept on the host and on the device; both hold the same `count` items (one array where the two coincide).
template <class T>
struct ListView {
  const T* host = nullptr;
  const T* device = nullptr;
  std::int64_t count = 0;
};

struct RowRange {
  std::int64_t source;       ///< first row read
  std::int64_t destination;  ///< first row written; the destinations of a list do not overlap
  std::int64_t count;
};

/// What every stage is told.
struct StageContext {
  const Config* config = nullptr;
  DType dtype = DType::f32;
  void* scratch = nullptr;  ///< Device::scratch_bytes() bytes that the stage may overwrite, 256-byte aligned
};

/// destination[row] = source[row] for every row of the ranges; `width` bytes of each row.
struct CopyRows {
  const void* source;
  void* destination;
  std::int64_t source_stride;       ///< bytes from row to row
  std::int64_t destination_stride;  ///< bytes from row to row
  std::int64_t width;               ///< bytes
  ListView<RowRange> ranges;
};

/// destination[row] += source[row], elements of type `dtype` (f32 or f64).
struct AddRows {
  const void* source;
  void* destination;
  std::int64_t source_stride;       ///< elements from row to row
  std::int64_t destination_stride;  ///< elements from row to row
  std::int64_t width;               ///< elements
  DType dtype;
  ListView<RowRange> ranges;
};

/// destination[i] = source[i], i < count.
struct Conversion {
  void* destination;
  const void* source;
  std::int64_t count;
};

/// Rounds f32 or f64 to the nearest of any type, halves to even: all of the arrays at once.
struct Convert {
  DType to;
  DType from;
  std::span<const Conversion> arrays;
};

/// Consecutive summaries of one document whose tokens are consecutive rows: summary `summary + k` covers rows
/// [source_row + k s, source_row + k s + l) of the input, k < count.
struct SummaryRun {
  std::int64_t source_row;
  std::int64_t summary;  ///< row of the summaries tensor
  std::int64_t count;
};

/// Parameters of the compressor of keys or of values, of the layer's type; a null pointer stands for "not given".
struct CompressorPointers {
  const void* pos = nullptr;     ///< [G, l, d], optional with every compressor
  const void* weight = nullptr;  ///< [G, l d, d], linear
  const void* w1 = nullptr;      ///< [G, l d, hidden], mlp
  const void* b1 = nullptr;      ///< [G, hidden], mlp
  const void* w2 = nullptr;      ///< [G, hidden, d], mlp
  const void* b2 = nullptr;      ///< [G, d], mlp
};

/// Gradients of the above, acc, "+=".
struct CompressorGradients {
  void* pos = nullptr;
  void* weight = nullptr;
  void* w1 = nullptr;
  void* b1 = nullptr;
  void* w2 = nullptr;
  void* b2 = nullptr;
};

/// Summaries of `input`. A summary's value may not depend on which runs or rows it is computed with: indices must be
/// the same at every rank count.
struct Compress : StageContext {
  std::int64_t dim;     ///< d: d_qk for keys, d_v for values
  std::int64_t hidden;  ///< mlp only
  const void* input;    ///< [input rows, G, d]
  CompressorPointers parameters;
  void* summaries;  ///< [summaries, G, d]
  ListView<SummaryRun> runs;
};

struct CompressBackward : StageContext {
  std::int64_t dim;
  std::int64_t hidden;
  const void* input;  ///< [input rows, G, d]
  CompressorPointers parameters;
  const void* dsummaries;  ///< acc [summaries, G, d]
  void* dinput;            ///< acc [input rows, G, d], "+="
  CompressorGradients dparameters;
  ListView<SummaryRun> runs;
};

/// o_cmp and its log-sum-exp: softmax over the visible summaries (those with i s + l - 1 <= t) of the row's document.
/// A row that sees none gets 0 and -infinity.
struct CompressedAttention : StageContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* keys;    ///< [C, G, d_qk]
  const void* values;  ///< [C, G, d_v]
  void* out;           ///< [rows, H, d_v]
  void* log_sum_exp;   ///< acc [rows, H], natural logarithm
};

/// Importance scores of equation 9 and the top n of them, never materialised. A row's result depends on the row's
/// query, its document's summaries and its log-sum-exps alone.
struct SelectBlocks : StageContext {
  const SegmentSchedule* queries;
  const void* q;            ///< [rows, H, d_qk]
  const void* keys;         ///< [C, G, d_qk]
  const void* log_sum_exp;  ///< acc [rows, H], of CompressedAttention
  std::int32_t* selected;   ///< [rows, G, n], document-relative block indices, ascending, padded with -1
};

/// Sets bit (block * G + head) for every pair that some row selected; block counts all B blocks.
struct MarkDemand : StageContext {
  const SegmentSchedule* queries;
  const std::int32_t* selected;  ///< [rows, G, n]
  std::uint32_t* bitmap;         ///< [ceil(B G / 32)], zeroed by the caller, bit b of word b / 32 is b % 32
};

/// One full selection block of one KV head: rows [row, row + m) of the rank's own tensors <-> slot `slot` of a pool.
/// A slot holds keys [m, d_qk] followed by values [m, d_v], contiguous.
struct BlockSlot {
  std::int64_t row;
  std::int32_t head;
  std::int32_t slot;
};

/// pool[slot] = k, v of the block.
struct PackBlocks : StageContext {
  const void* k;  ///< [rows, G, d_qk]
  const void* v;  ///< [rows, G, d_v]
  void* pool;     ///< [slots][m d_qk + m d_v]
  ListView<BlockSlot> blocks;
};

/// dk, dv of the block += pool[slot]; no two items of the list name the same block.
struct AddBlocks : StageContext {
  const void* pool;  ///< acc [slots][m d_qk + m d_v]
  void* dk;          ///< acc [rows, G, d_qk], "+="
  void* dv;          ///< acc [rows, G, d_v], "+="
  ListView<BlockSlot> blocks;
};

/// Where a selected block's keys and values are, for a (block, KV head) pair: `row >= 0`: rows from `row` on of the
/// rank's own tensors; `row < 0`: slot `-1 - row` of the pool. Pairs that no row of the rank selected are undefined.
using BlockLocation = std::int32_t;

struct CombineBranches;

/// o_slc and its log-sum-exp for query heads of KV heads [head_begin, head_end): softmax over the tokens u <= t of the
/// selected blocks.
struct SelectedAttention : StageContext {
  const SegmentSchedule* queries;
  const void* q;                 ///< [rows, H, d_qk]
  const void* k;                 ///< [rows, G, d_qk]
  const void* v;                 ///< [rows, G, d_v]
  const void* pool;              ///< [slots][m d_qk + m d_v]
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  std::int64_t head_begin;
  std::int64_t head_end;
  void* out;          ///< [rows, H, d_v]; with `combine` it may be null
  void* log_sum_exp;  ///< acc [rows, H]
  /// For a device that combines_selected(): what to do besides for these heads, with this o_slc in place of its own.
  const CombineBranches* combine = nullptr;
};

/// o_win and its log-sum-exp: softmax over t - w < u <= t. Tokens before the segment are in the halo.
struct WindowAttention : StageContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* k;       ///< [rows, G, d_qk]
  const void* v;       ///< [rows, G, d_v]
  const void* halo_k;  ///< [halo rows, G, d_qk]
  const void* halo_v;  ///< [halo rows, G, d_v]
  void* out;           ///< [rows, H, d_v]
  void* log_sum_exp;   ///< acc [rows, H]
};

/// out = g0 o_cmp + g1 o_slc + g2 o_win, g = sigmoid(gate) or gate.
struct CombineBranches : StageContext {
  std::int64_t rows;
  const void* gate;   ///< [rows, H, 3]
  const void* o_cmp;  ///< [rows, H, d_v]
  const void* o_slc;  ///< [rows, H, d_v]
  const void* o_win;  ///< [rows, H, d_v]
  void* out;          ///< [rows, H, d_v]
};

/// What the branches' backward passes share. A branch b's output gradient is weight_b dout, never materialised; its
/// delta is the row sum of that times o_b.
struct CombineBranchesBackward : StageContext {
  std::int64_t rows;
  const void* gate;   ///< [rows, H, 3]
  const void* o_cmp;  ///< [rows, H, d_v]
  const void* o_slc;  ///< [rows, H, d_v]
  const void* o_win;  ///< [rows, H, d_v]
  const void* dout;   ///< [rows, H, d_v]
  void* dgate;        ///< acc [rows, H, 3], overwritten
  void* weights;      ///< acc [3, rows, H], overwritten: the gates applied
  void* deltas;       ///< acc [3, rows, H], overwritten: g_b sum_c dout o_b
};

/// What the backward of every branch is given of the forward and of the gate.
struct BranchGradient {
  const void* dout;         ///< [rows, H, d_v]
  const void* weights;      ///< acc [rows, H], of this branch
  const void* deltas;       ///< acc [rows, H], of this branch
  const void* log_sum_exp;  ///< acc [rows, H], of this branch
};

struct CompressedAttentionBackward : StageContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* keys;    ///< [C, G, d_qk]
  const void* values;  ///< [C, G, d_v]
  BranchGradient gradient;
  void* dq;       ///< acc [rows, H, d_qk], "+="
  void* dkeys;    ///< acc [C, G, d_qk], "+="
  void* dvalues;  ///< acc [C, G, d_v], "+="
};

struct SelectedAttentionBackward : StageContext {
  const SegmentSchedule* queries;
  const void* q;                 ///< [rows, H, d_qk]
  const void* k;                 ///< [rows, G, d_qk]
  const void* v;                 ///< [rows, G, d_v]
  const void* pool;              ///< [slots][m d_qk + m d_v]
  std::int64_t pool_slots;       ///< slots of the pool that are in use
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  std::int64_t head_begin;
  std::int64_t head_end;
  BranchGradient gradient;
  void* dq;     ///< acc [rows, H, d_qk], "+="
  void* dk;     ///< acc [rows, G, d_qk], "+="
  void* dv;     ///< acc [rows, G, d_v], "+="
  void* dpool;  ///< acc [slots][m d_qk + m d_v], "+="
};

struct WindowAttentionBackward : StageContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* k;       ///< [rows, G, d_qk]
  const void* v;       ///< [rows, G, d_v]
  const void* halo_k;  ///< [halo rows, G, d_qk]
  const void* halo_v;  ///< [halo rows, G, d_v]
  BranchGradient gradient;
  void* dq;       ///< acc [rows, H, d_qk], "+="
  void* dk;       ///< acc [rows, G, d_qk], "+="
  void* dv;       ///< acc [rows, G, d_v], "+="
  void* dhalo_k;  ///< acc [halo rows, G, d_qk], "+="
  void* dhalo_v;  ///< acc [halo rows, G, d_v], "+="
};

/// What a device needs to say how much scratch its stages want on one rank.
struct ProblemSize {
  const Config* config = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;       ///< this rank's tokens
  std::int64_t halo_rows = 0;  ///< rows of the window halo
  std::int64_t compress_halo_rows = 0;
  std::int64_t own_summaries = 0;  ///< summaries this rank computes
  std::int64_t summaries = 0;      ///< C
  std::int64_t blocks = 0;         ///< B
  std::int64_t pool_slots = 0;     ///< most (block, head) slots of a pool
  bool backward = false;
};

}  // namespace cpnsa
