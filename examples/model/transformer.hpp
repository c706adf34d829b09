#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "examples/model/decoding_cache.hpp"
#include "examples/model/embedding.hpp"
#include "examples/model/gated_mlp.hpp"
#include "examples/model/rms_norm.hpp"
#include "examples/model/self_attention.hpp"

namespace model {

struct TransformerSize {
  int layers = 2;
  std::int64_t width = 64;  ///< channels of the residual stream
  std::int64_t vocabulary = 256;
};

/// A transformer: embedding, layers of attention and gated MLP, and a distribution of the next token. The sequence, of
/// one or more documents, is sharded by the partition; token arguments and results are this rank's, in the order of its
/// rows.
class Transformer {
 public:
  /// Adds its weights to the parameters and uploads them. Collective, like all calls below.
  Transformer(Parameters& parameters, const AttentionKind& kind, const TransformerSize& size,
              const cpnsa::Partition& partition, cpnsa::Communicator& communicator);

  /// Sum of the losses of this rank's rows in nats; a row whose target is `ignored` has none. The Parameters' gradients
  /// become those of `scale` times the loss.
  double forward_backward(std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets, double scale);

  /// Appends tokens to the sequence in a cache, the same on every rank; returns the most likely next token.
  std::int32_t append(std::span<const std::int32_t> tokens, DecodingCache& cache);

  /// For each token the most likely next one.
  std::vector<std::int32_t> predict(std::span<const std::int32_t> tokens);

  /// Statistics of the last step, all layers together.
  std::int64_t bytes_received();
  std::int64_t blocks_fetched();

 private:
  struct Layer {
    RmsNorm attention_norm;
    SelfAttention attention;
    RmsNorm mlp_norm;
    GatedMlp mlp;
  };

  Tensor forward(TokenView tokens);  // the last norm's output

  Parameters& parameters_;
  std::int64_t head_dim_;
  Rope rope_;
  Workspace workspace_;
  Embedding embedding_;
  std::vector<std::unique_ptr<Layer>> layers_;
  RmsNorm norm_;
  Weight head_;
};

}  // namespace model
