#pragma once

#include <vector>

#include "examples/model/rope.hpp"
#include "examples/model/sharded_attention.hpp"

namespace model {

/// Projections to queries, keys, values and gates; RoPE; attention over the sharded sequence; output projection.
class SelfAttention {
 public:
  SelfAttention(Parameters& parameters, const AttentionKind& kind, std::int64_t width, double out_deviation,
                const Rope& rope, const cpnsa::Partition& partition, cpnsa::Communicator& communicator,
                Workspace& workspace);

  void forward(Tensor x, const TensorView& sum);  ///< sum += ...; x is narrow, sum wide
  /// The same for the next tokens of a sequence in a cache; `rope` has their positions.
  void append(const TensorView& x, const TensorView& sum, const Rope& rope, DecodingCache& cache, int layer) const;
  Tensor backward(const TensorView& dy);  ///< dx, wide; dy is narrow
  cpnsa::Statistics statistics() { return attention_.statistics(); }

 private:
  AttentionTensors project(const TensorView& x, const Rope& rope) const;
  Tensor gates(const TensorView& x) const;

  Parameters& parameters_;
  AttentionKind kind_;
  const Rope& rope_;
  ShardedAttention attention_;
  Weight q_, gate_, out_;
  std::vector<Weight> k_, v_;
  Tensor x_;
};

}  // namespace model
