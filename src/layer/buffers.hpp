#pragma once

#include <array>
#include <cstdint>

#include "cpnsa/arena.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {

/// The three branches, as indices.
enum Branch { cmp, slc, win };

/// Keys and values, or their gradients, in device memory.
struct KeyValue {
  void* k = nullptr;
  void* v = nullptr;
};
struct ConstKeyValue {
  ConstKeyValue(const void* keys, const void* values) : k(keys), v(values) {}
  ConstKeyValue(const KeyValue& both) : k(both.k), v(both.v) {}
  const void* k;
  const void* v;
};

/// A planned halo's tokens on the wire: what this rank sends and what it receives.
struct HaloTokens {
  void* send = nullptr;
  void* receive = nullptr;
};

/// The source of other ranks' blocks in a pass: messages, or memory where they already are.
enum class Blocks { brought_in, in_place };

/// Takes an arena's memory for tensors of rows.
class RowArena {
 public:
  /// `element`: bytes of one element.
  RowArena(Arena& arena, const LayerSizes& sizes, std::size_t element)
      : arena_(arena), sizes_(sizes), element_(element) {}

  void* rows(std::int64_t rows, std::int64_t width) { return arena_.take(LayerSizes::bytes(rows, width, element_)); }
  KeyValue keys_values(std::int64_t count) {
    KeyValue both;
    both.k = rows(count, sizes_.k_width);
    both.v = rows(count, sizes_.v_width);
    return both;
  }
  void* tokens(std::int64_t count) { return rows(count, sizes_.token_width()); }
  HaloTokens halo(std::int64_t sent, std::int64_t received) {
    HaloTokens both;
    both.send = tokens(sent);
    both.receive = tokens(received);
    return both;
  }

 private:
  Arena& arena_;
  const LayerSizes& sizes_;
  std::size_t element_;
};

/// The outputs of the three branches.
struct BranchBuffers {
  enum class Selected { stored, not_stored };  ///< the selected branch's output

  BranchBuffers() = default;
  BranchBuffers(Arena& arena, const LayerSizes& sizes, Selected selected);

  /// Bytes of the three outputs, which come first.
  static std::size_t output_bytes(const LayerSizes& sizes);

  std::array<void*, 3> out{};          ///< [rows, H, d_v] by branch
  std::array<void*, 3> log_sum_exp{};  ///< acc [rows, H] by branch
};

/// The part of a forward's workspace that the other ranks read with Exchange::pull; empty otherwise. It comes first,
/// and its members have the same sizes on every rank, so that each has one offset on all.
struct ForwardWindow {
  ForwardWindow(Arena& arena, const LayerPlan& layer);

  KeyValue blocks;     ///< [max rows, G, d]: own keys and values of the selected branch
  void* summary_halo;  ///< HaloTokens::send
  void* window_halo;   ///< HaloTokens::send
  void* gathered;      ///< ForwardBuffers::gathered, whose own part the others read
};

/// The same of a backward's workspace.
struct BackwardWindow {
  BackwardWindow(Arena& arena, const LayerPlan& layer);

  KeyValue blocks;              ///< as in the forward, unless the blocks were saved
  std::uint32_t* needs;         ///< [LayerPlan::need_words()], this rank's
  std::array<void*, 2> dpools;  ///< acc [max pool slots]
  void* summary_halo;           ///< HaloTokens::send of the gradients
  void* window_halo;            ///< HaloTokens::send of the gradients
  void* summaries;              ///< BackwardBuffers::summaries_send
};

/// The part of a forward that its backward reads. It is in SavedForward::memory, or in the workspace when no backward
/// follows.
struct SavedBuffers {
  SavedBuffers(Arena& arena, const LayerPlan& layer);

  KeyValue summaries;      ///< [C, G, d_qk], [C, G, d_v]
  KeyValue summary_halo;   ///< [summary halo rows, G, d]
  KeyValue window_halo;    ///< [window halo rows, G, d]
  BranchBuffers branches;  ///< if LayerSizes::saves_branches
  void* blocks = nullptr;  ///< if LayerSizes::saves_blocks: the pools of all rounds, one after another
  std::int32_t* selected;  ///< [rows, G, n]
  std::uint32_t* needs;    ///< with Exchange::pull: [LayerPlan::need_words()], this rank's part of the need matrix
};

/// The selected branch's exchange, in a pass.
struct ExchangeBuffers {
  ExchangeBuffers(Arena& arena, const LayerPlan& layer, Blocks blocks);

  void* send;                  ///< [send slots]
  std::array<void*, 2> pools;  ///< rounds alternate: one fills while the other is read; none if blocks are saved
  BlockLocation* table;        ///< [B, G]
  BlockSlot* packed;           ///< the rounds' lists, one after another
};

struct ForwardBuffers {
  ForwardBuffers(Arena& arena, const LayerPlan& layer, const ForwardWindow& window);

  ExchangeBuffers exchange;
  BranchBuffers branches;   ///< unless LayerSizes::saves_branches
  HaloTokens summary_halo;  ///< tokens on the wire
  HaloTokens window_halo;
  void* gathered;        ///< summaries as tokens, in rank order
  std::uint32_t* needs;  ///< [P, LayerPlan::need_words()], the need matrix, unless blocks are pulled
  void* scratch;
  void* side_scratch;  ///< of stages on the side stream
};

struct BackwardBuffers {
  BackwardBuffers(Arena& arena, const LayerPlan& layer, const BranchBuffers& saved, const BackwardWindow& window);

  ExchangeBuffers exchange;
  BranchBuffers branches;   ///< as saved, or to be computed again
  void* weights;            ///< acc [3, rows, H]
  void* deltas;             ///< acc [3, rows, H]
  void* dgate;              ///< acc, where the caller wants another type
  void* dq_cmp;             ///< acc, as dgate, if AttentionOptions::compressed_query
  void* dq;                 ///< acc, as dgate; dq, dk, dv may reuse the memory of the branches' outputs
  std::array<void*, 3> dk;  ///< acc [rows, G, d_qk] by branch
  std::array<void*, 3> dv;
  std::array<void*, 2> dpools;           ///< acc [pool slots], gradients of the pools
  std::array<void*, 2> returned_blocks;  ///< acc [send slots], gradients of the blocks that this rank sent
  KeyValue dsummaries;                   ///< acc [C, G, d]
  void* summaries_send;                  ///< acc tokens, in rank order
  void* summaries_receive;               ///< acc tokens [P - 1, own summaries]
  KeyValue dsummary_halo;                ///< acc [summary halo rows, G, d]
  KeyValue dwindow_halo;                 ///< acc [window halo rows, G, d]
  HaloTokens summary_halo;               ///< acc tokens on the wire
  HaloTokens window_halo;
  void* parameter_sums;  ///< acc, the compressors' gradients where the caller wants another type, each aligned
  void* parameters;      ///< acc, the compressors' gradients and the work memory of their sum over the ranks
  void* scratch;
};

}  // namespace cpnsa
