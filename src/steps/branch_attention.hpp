#pragma once

#include <cstddef>

#include "src/layer/buffers.hpp"
#include "src/layer/layer_lists.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {

/// The rotation of all summaries of keys, or of their gradients (`inverse`), of type `dtype`.
RotateRows summary_rotation(const LayerPlan& layer, const LayerLists& lists, const SummaryRotation& rotation,
                            void* data, DType dtype, bool inverse = false);

/// The branches' stages for this rank's queries, enqueued by the forward, and again by a backward that recomputes the
/// branches. The halos, summaries and selected blocks that they read must be there.
class BranchAttention {
 public:
  /// All but the stream must outlive it. `out`: what the branches compute.
  BranchAttention(const LayerPlan& layer, const LayerLists& lists, Device& device, const AttentionInputs& inputs,
                  const SavedBuffers& saved, const BranchBuffers& out, void* scratch, Stream stream)
      : layer_(layer),
        lists_(lists),
        device_(device),
        in_(inputs),
        saved_(saved),
        out_(out),
        scratch_(scratch),
        stream_(stream) {}

  /// A branch that is off is 0.
  void window() const;
  /// Also where importance alone reads it: clear_compressed() then follows select().
  void compressed() const;
  /// Makes the output of a compressed branch that is off 0.
  void clear_compressed() const;
  /// From what compressed() computed to SavedBuffers::selected.
  void select() const;
  /// One round's heads, whose blocks of other ranks are in `pool`. `combine`: also combine the branches so, or null.
  void selected(const planning::ExchangeRound& round, const void* pool, const BlockLocation* table,
                const CombineBranches* combine = nullptr) const;
  /// Follows the last round: the selected branch's sinks; 0 for a branch that is off.
  void finish_selected() const;

 private:
  void clear(Branch branch) const;
  void add_sinks(Branch branch, const TensorView& sinks) const;
  template <class Arguments>
  Arguments arguments() const {
    auto arguments = layer_.arguments<Arguments>(scratch_);
    arguments.queries = lists_.queries.get();
    arguments.q = in_.q.data;
    return arguments;
  }
  const void* compressed_query() const { return in_.q_cmp ? in_.q_cmp.data : in_.q.data; }

  const LayerPlan& layer_;
  const LayerLists& lists_;
  Device& device_;
  const AttentionInputs& in_;
  const SavedBuffers& saved_;
  const BranchBuffers& out_;
  void* scratch_;
  Stream stream_;
};

}  // namespace cpnsa
