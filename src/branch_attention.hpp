#pragma once

#include "src/attention_impl.hpp"

namespace cpnsa {

/// The three branches' attention of this rank's queries, enqueued by the forward, and again by a backward that
/// recomputes it. Everything it reads must be in place: halos, summaries, selected blocks.
class BranchAttention {
 public:
  BranchAttention(Layer& attention, const AttentionInputs& inputs, const SavedBuffers& kept, const BranchBuffers& out,
                  void* scratch, Stream stream)
      : a(attention), in(inputs), kept(kept), out(out), scratch(scratch), stream(stream) {}

  void window() const;
  void compressed() const;
  /// `combine`: what the stage does besides, if anything.
  void selected(const planning::ExchangeRound& round, const void* pool, const BlockLocation* table,
                const CombineBranches* combine = nullptr) const;

 private:
  Layer& a;
  const AttentionInputs& in;
  const SavedBuffers& kept;
  const BranchBuffers& out;
  void* scratch;
  Stream stream;
};

}  // namespace cpnsa
