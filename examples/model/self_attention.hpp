#pragma once

#include <vector>

#include "examples/model/rope.hpp"
#include "examples/model/sharded_attention.hpp"

namespace model {

/// Projections to queries, keys, values and gates; RoPE; attention over the sharded sequence; projection back.
class SelfAttention {
 public:
  SelfAttention(Parameters& parameters, const AttentionKind& kind, std::int64_t width, double out_deviation,
                const Rope& rope, const cpnsa::Partition& partition, cpnsa::Communicator& communicator,
                const Place& place);

  Matrix forward(const Matrix& x);
  void backward(const Matrix& dy, Matrix& dx);  ///< dx += ...
  cpnsa::Statistics statistics() { return attention_.statistics(); }

 private:
  Parameters& parameters_;
  AttentionKind kind_;
  const Rope& rope_;
  Weight q_, gate_, out_;
  std::vector<Weight> k_, v_;
  ShardedAttention attention_;
  Matrix x_, attended_;
};

}  // namespace model
