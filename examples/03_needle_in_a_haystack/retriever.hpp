#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "examples/model/rms_norm.hpp"
#include "examples/model/self_attention.hpp"

namespace needle {

/// The model's inputs for this rank's rows. The token before a row may belong to another rank, so it is given too.
struct Rows {
  std::vector<std::int32_t> tokens, previous;
};

/// One layer of attention. Apart from it, a token sees only the token before it, so that a value knows its key. There
/// is no position encoding, so that the model works for sequences longer than those of the training.
///
///   x = E[token] + E[previous] S,   x += attention(norm(x)),   logits = norm(x) E^T
class Retriever {
 public:
  /// Adds its weights to the parameters and uploads them. Collective, like all calls below.
  Retriever(model::Parameters& parameters, const model::AttentionKind& kind, std::int64_t width,
            std::int64_t vocabulary, const cpnsa::Partition& partition, cpnsa::Communicator& communicator);

  /// Sum of the losses of this rank's rows in nats; a row whose target is model::ignored has none. The Parameters'
  /// gradients become those of `scale` times the loss.
  double forward_backward(const Rows& rows, std::span<const std::int32_t> targets, double scale);

  /// The most likely next token for each row.
  std::vector<std::int32_t> predict(const Rows& rows);

  cpnsa::Statistics statistics() { return attention_.statistics(); }  ///< statistics of the last step

 private:
  model::Tensor logits(model::TokenView tokens, model::TokenView previous);

  model::Parameters& parameters_;
  model::Rope nowhere_;  // rotates nothing: all tokens are at position 0
  model::Workspace workspace_;
  model::Weight table_, shift_;  // E, S
  model::RmsNorm norm_;
  model::SelfAttention attention_;
  model::RmsNorm last_norm_;
  model::Tensor shifted_, normed_;
};

}  // namespace needle
