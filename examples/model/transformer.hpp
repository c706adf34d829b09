#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "examples/model/embedding.hpp"
#include "examples/model/gated_mlp.hpp"
#include "examples/model/rms_norm.hpp"
#include "examples/model/self_attention.hpp"

namespace model {

/// A transformer over bytes: embedding, layers of attention and gated MLP, a distribution of the next byte.
class Transformer {
 public:
  Transformer(Parameters& parameters, const AttentionKind& kind, int layers, std::int64_t width,
              const cpnsa::Partition& partition, cpnsa::Communicator& communicator, const Place& place);

  /// Sum of the losses of this rank's rows in nats. Gradients of `scale` times the loss are added to the Parameters.
  double forward_backward(std::span<const std::uint8_t> bytes, std::span<const std::uint8_t> targets, double scale);

  /// Of the last step, all layers together.
  std::int64_t bytes_received();
  std::int64_t blocks_fetched();

 private:
  struct Layer {
    RmsNorm attention_norm;
    SelfAttention attention;
    RmsNorm mlp_norm;
    GatedMlp mlp;
  };

  Parameters& parameters_;
  Rope rope_;
  Embedding embedding_;
  std::vector<std::unique_ptr<Layer>> layers_;
  RmsNorm norm_;
  Weight head_;
};

}  // namespace model
