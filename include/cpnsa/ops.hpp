#pragma once

// The ops of a Device for training and prefill: one small struct of arguments per op, a shape on each pointer, and the
// list of them. decode_ops.hpp has those that decode.
//
// Symbols are those of docs/algorithm.md: H query heads; G KV heads, each with its group of R = H / G query heads; d_qk
// and d_v head dimensions; compression block l and stride s; selection block m; n selected blocks; window w. `rows` is
// the number of this rank's tokens, C the number of summaries of all documents, B the number of selection blocks of all
// documents. Tensors have the layer's type `dtype`; pointers marked "acc" have accumulate_dtype(dtype). All pointers
// are memory of the device. Gradients marked "+=" are added to, never overwritten. The formulas are in
// docs/algorithm.md.

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

/// A rank's segments, prepared by Device::schedule(). Devices derive from it to hold tile lists in their own memory.
class SegmentSchedule {
 public:
  explicit SegmentSchedule(std::span<const Segment> segments);
  virtual ~SegmentSchedule() = default;

  std::vector<Segment> segments;  ///< in the order of local rows, host memory
  std::int64_t rows = 0;          ///< sum of the segments' rows
};

/// A list that exists on the host and on the device with the same `count` items: one array if the host can access the
/// device's memory, else two.
template <class T>
struct ListView {
  const T* host = nullptr;
  const T* device = nullptr;
  std::int64_t count = 0;
};

/// Rows [source, source + count) of one tensor and the rows [destination, destination + count) of another.
struct RowRange {
  std::int64_t source;       ///< first row read
  std::int64_t destination;  ///< first row written; the destinations of a list do not overlap
  std::int64_t count;
};

/// The arguments that ops of a layer have in common.
struct OpContext {
  const Config* config = nullptr;
  DType dtype = DType::f32;
  void* scratch = nullptr;  ///< Device::scratch_bytes() bytes that the op may overwrite, 256-byte aligned
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

/// destination[row] += source[row] for every row of the ranges; elements of type `dtype` (f32 or f64, else
/// ArgumentError).
struct AddRows {
  const void* source;
  void* destination;
  std::int64_t source_stride;       ///< elements from row to row
  std::int64_t destination_stride;  ///< elements from row to row
  std::int64_t width;               ///< elements
  DType dtype;
  ListView<RowRange> ranges;
};

/// One array of Convert: destination[i] = source[i], i < count.
struct Conversion {
  void* destination;
  const void* source;
  std::int64_t count;
};

/// Rounds arrays of type `from` (f32 or f64) to type `to` (any), to nearest, ties to even. ArgumentError for another
/// `from`.
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

/// Gradients of a compressor's parameters, in the shapes of CompressorPointers, acc, "+="; a null pointer stands for
/// "not wanted".
struct CompressorGradients {
  void* pos = nullptr;
  void* weight = nullptr;
  void* w1 = nullptr;
  void* b1 = nullptr;
  void* w2 = nullptr;
  void* b2 = nullptr;
};

/// The summaries of `input` by the config's compressor ("Summaries"). A summary's value must not depend on which other
/// summaries are computed with it, or the selected blocks would differ between rank counts.
struct Compress : OpContext {
  std::int64_t dim;     ///< d: d_qk for keys, d_v for values
  std::int64_t hidden;  ///< mlp only
  const void* input;    ///< [input rows, G, d]
  CompressorPointers parameters;
  void* summaries;  ///< [summaries, G, d]
  ListView<SummaryRun> runs;
};

/// The gradients of Compress with respect to its input and its parameters.
struct CompressBackward : OpContext {
  std::int64_t dim;     ///< d: d_qk for keys, d_v for values
  std::int64_t hidden;  ///< mlp only
  const void* input;    ///< [input rows, G, d]
  CompressorPointers parameters;
  const void* dsummaries;  ///< acc [summaries, G, d]
  void* dinput;            ///< acc [input rows, G, d], "+="; null: not wanted
  CompressorGradients dparameters;
  ListView<SummaryRun> runs;
};

/// Rotates pairs of channels of rows, in place: see SummaryRotation. Row `destination + i` of a range is rotated by the
/// angles in row `source + i` of the tables.
struct RotateRows {
  void* data;       ///< [.., heads, dim] of type `dtype`
  const void* cos;  ///< acc [table rows, pairs], accumulate_dtype(dtype)
  const void* sin;  ///< acc [table rows, pairs]
  std::int64_t heads;
  std::int64_t dim;
  std::int64_t pairs;
  bool interleaved;
  bool inverse;  ///< by the negative angles
  DType dtype;
  ListView<RowRange> ranges;
};

/// o_cmp and its log-sum-exp: softmax over the visible summaries (those with i s + l - 1 <= t) of the row's document.
/// A row that sees no summary gets output 0 and log-sum-exp -infinity.
struct CompressedAttention : OpContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* keys;    ///< [C, G, d_qk]
  const void* values;  ///< [C, G, d_v]
  void* out;           ///< [rows, H, d_v]
  void* log_sum_exp;   ///< acc [rows, H], natural logarithm
};

/// The n selected blocks of each row and KV head ("Importance" and "Selection"); the scores are never materialised. A
/// row's result depends only on its query, its document's summaries and its log-sum-exps.
struct SelectBlocks : OpContext {
  const SegmentSchedule* queries;
  const void* q;            ///< [rows, H, d_qk]
  const void* keys;         ///< [C, G, d_qk]
  const void* log_sum_exp;  ///< acc [rows, H], of CompressedAttention
  std::int32_t* selected;   ///< [rows, G, n], document-relative block indices, ascending, padded with -1
};

/// Sets bit (block * G + group) for every (block, KV head) pair that some row selected; `block` is an index among all
/// B.
struct MarkNeeds : OpContext {
  const SegmentSchedule* queries;
  const std::int32_t* selected;  ///< [rows, G, n]
  std::uint32_t* bitmap;         ///< [ceil(B G / 32)], zeroed by the caller; bit b is bit b % 32 of word b / 32
};

/// One full selection block of one KV head: rows [row, row + m) of the rank's own tensors and slot `slot` of a pool. A
/// slot holds keys [m, d_qk] followed by values [m, d_v], contiguous.
struct BlockSlot {
  std::int64_t row;
  std::int32_t group;  ///< index of the KV head
  std::int32_t slot;
};

/// pool[slot] = keys and values of the block, for every item of the list.
struct PackBlocks : OpContext {
  const void* k;  ///< [rows, G, d_qk]
  const void* v;  ///< [rows, G, d_v]
  void* pool;     ///< [slots][m d_qk + m d_v]
  ListView<BlockSlot> blocks;
};

/// dk and dv of the block += pool[slot], for every item of the list; no two items name the same block.
struct AddBlocks : OpContext {
  const void* pool;  ///< acc [slots][m d_qk + m d_v]
  void* dk;          ///< acc [rows, G, d_qk], "+="
  void* dv;          ///< acc [rows, G, d_v], "+="
  ListView<BlockSlot> blocks;
};

/// Where the keys and values of a (block, KV head) pair are. A location >= 0 is their first row in the rank's own
/// tensors; a location < 0 is slot -1 - location of the pool. Undefined for pairs that no row of the rank selected.
using BlockLocation = std::int32_t;

struct CombineBranches;

/// o_slc and its log-sum-exp for the query heads of KV heads [group_begin, group_end): softmax over the tokens u <= t
/// of the selected blocks.
struct SelectedAttention : OpContext {
  const SegmentSchedule* queries;
  const void* q;                 ///< [rows, H, d_qk]
  const void* k;                 ///< [rows, G, d_qk]
  const void* v;                 ///< [rows, G, d_v]
  const void* pool;              ///< [slots][m d_qk + m d_v]
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  std::int64_t group_begin;
  std::int64_t group_end;
  void* out;          ///< [rows, H, d_v]; may be null if `combine` is set
  void* log_sum_exp;  ///< acc [rows, H]
  /// If set, the op also does this CombineBranches for the same query heads, with its own o_slc in place of
  /// CombineBranches::o_slc. Only for devices whose combines_selected() is true.
  const CombineBranches* combine = nullptr;
};

/// o_win and its log-sum-exp: softmax over the tokens t - w < u <= t. Tokens before the segment are in the halo.
struct WindowAttention : OpContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* k;       ///< [rows, G, d_qk]
  const void* v;       ///< [rows, G, d_v]
  const void* halo_k;  ///< [halo rows, G, d_qk]
  const void* halo_v;  ///< [halo rows, G, d_v]
  void* out;           ///< [rows, H, d_v]
  void* log_sum_exp;   ///< acc [rows, H]
};

/// Lets a branch's sinks take part in its softmax: with l' = log(exp(l) + exp(sink)) of each log-sum-exp l, out becomes
/// exp(l - l') out, and l becomes l'.
struct AddSinks : OpContext {
  std::int64_t rows;
  const void* sinks;  ///< [H]
  void* out;          ///< [rows, H, d_v]
  void* log_sum_exp;  ///< acc [rows, H]
};

/// The gradient of AddSinks: dsinks[h] += - sum over the rows of exp(sink - l') delta, in one order of the rows.
struct AddSinksBackward : OpContext {
  std::int64_t rows;
  const void* sinks;        ///< [H]
  const void* log_sum_exp;  ///< acc [rows, H]: l'
  const void* deltas;       ///< acc [rows, H], of CombineBranchesBackward for this branch
  void* dsinks;             ///< acc [H], "+="
};

/// out = g0 o_cmp + g1 o_slc + g2 o_win, g = sigmoid(gate) or gate.
struct CombineBranches : OpContext {
  std::int64_t rows;
  const void* gate;   ///< [rows, H, 3]
  const void* o_cmp;  ///< [rows, H, d_v]
  const void* o_slc;  ///< [rows, H, d_v]
  const void* o_win;  ///< [rows, H, d_v]
  void* out;          ///< [rows, H, d_v]
};

/// The gradient of the gate, and what the backward ops of the branches need of it: the output gradient of branch b is
/// weights[b] dout, never materialised; deltas[b] is its dot product with o_b.
struct CombineBranchesBackward : OpContext {
  std::int64_t rows;
  const void* gate;   ///< [rows, H, 3]
  const void* o_cmp;  ///< [rows, H, d_v]
  const void* o_slc;  ///< [rows, H, d_v]
  const void* o_win;  ///< [rows, H, d_v]
  const void* dout;   ///< [rows, H, d_v]
  void* dgate;        ///< acc [rows, H, 3], overwritten
  void* weights;      ///< acc [3, rows, H], overwritten: g
  void* deltas;       ///< acc [3, rows, H], overwritten: g_b dout . o_b
};

/// The results of the forward and of CombineBranchesBackward that the backward op of each branch reads.
struct BranchGradient {
  const void* dout;         ///< [rows, H, d_v]
  const void* weights;      ///< acc [rows, H], of this branch
  const void* deltas;       ///< acc [rows, H], of this branch
  const void* log_sum_exp;  ///< acc [rows, H], of this branch
};

/// The gradients of CompressedAttention.
struct CompressedAttentionBackward : OpContext {
  const SegmentSchedule* queries;
  const void* q;       ///< [rows, H, d_qk]
  const void* keys;    ///< [C, G, d_qk]
  const void* values;  ///< [C, G, d_v]
  BranchGradient gradient;
  void* dq;       ///< acc [rows, H, d_qk], "+="
  void* dkeys;    ///< acc [C, G, d_qk], "+="
  void* dvalues;  ///< acc [C, G, d_v], "+="
};

/// The gradients of SelectedAttention, with the selection held fixed.
struct SelectedAttentionBackward : OpContext {
  const SegmentSchedule* queries;
  const void* q;                 ///< [rows, H, d_qk]
  const void* k;                 ///< [rows, G, d_qk]
  const void* v;                 ///< [rows, G, d_v]
  const void* pool;              ///< [slots][m d_qk + m d_v]
  std::int64_t pool_slots;       ///< slots of the pool that are in use
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  std::int64_t group_begin;
  std::int64_t group_end;
  BranchGradient gradient;
  void* dq;     ///< acc [rows, H, d_qk], "+="
  void* dk;     ///< acc [rows, G, d_qk], "+="
  void* dv;     ///< acc [rows, G, d_v], "+="
  void* dpool;  ///< acc [slots][m d_qk + m d_v], "+="
};

/// The gradients of WindowAttention.
struct WindowAttentionBackward : OpContext {
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

/// The sizes of one rank's layer that Device::scratch_bytes() depends on.
struct ProblemSize {
  const Config* config = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;           ///< this rank's tokens
  std::int64_t own_summaries = 0;  ///< summaries that this rank computes
  std::int64_t summaries = 0;      ///< C
  std::int64_t blocks = 0;         ///< B
  bool backward = false;           ///< whether ops of the backward run too
};

/// A list of types.
template <class... Types>
struct OpList {};

/// The ops of a layer, by their structs of arguments; decode_ops.hpp joins them with those that decode.
using LayerOps = OpList<CopyRows, AddRows, Convert, PackBlocks, AddBlocks, MarkNeeds, Compress, CompressedAttention,
                        SelectBlocks, SelectedAttention, WindowAttention, CombineBranches, CombineBranchesBackward,
                        WindowAttentionBackward, SelectedAttentionBackward, CompressedAttentionBackward,
                        CompressBackward, RotateRows, AddSinks, AddSinksBackward>;

}  // namespace cpnsa
