#pragma once

#include <memory>
#include <vector>

#include "cpnsa/attention.hpp"
#include "examples/model/compressor.hpp"
#include "examples/model/device_tensor.hpp"
#include "examples/model/matrix.hpp"

namespace model {

/// What attention reads of this rank's rows, or the gradients of it. `k` and `v` have one matrix for each branch
/// (compressed, selected, window), or one that all three share.
struct AttentionMatrices {
  Matrix q;               // [rows, H dk]
  std::vector<Matrix> k;  // [rows, G dk]
  std::vector<Matrix> v;  // [rows, G dv]
  Matrix gate;            // [rows, H 3]
};

/// How a layer of the model attends.
struct AttentionKind {
  cpnsa::Config config;
  cpnsa::AttentionOptions options;
  int key_value_pairs = 3;  ///< 3: each branch has keys and values of its own; 1: shared
  bool gated = true;        ///< false: the window branch alone, gates 0, 0, 1

  /// The model's NSA: small blocks, for sequences of a few thousand bytes.
  static AttentionKind nsa(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim);
  /// Causal attention to every token, as a window that is the whole sequence.
  static AttentionKind full(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t tokens);
};

/// One cpnsa::Attention with its memory: the one place of this program that calls the library's forward and backward.
class ShardedAttention {
 public:
  ShardedAttention(Parameters& parameters, const AttentionKind& kind, const cpnsa::Partition& partition,
                   cpnsa::Communicator& communicator, const Place& place);

  Matrix forward(const AttentionMatrices& inputs);  ///< [rows, H dv]
  AttentionMatrices backward(const Matrix& dout);   ///< compressor gradients go to the Parameters
  cpnsa::Statistics statistics() { return attention_.statistics(); }

 private:
  struct Tensors {
    Tensors(const AttentionKind& kind, std::int64_t rows, const Place& place);
    cpnsa::BranchTensors keys() const;
    cpnsa::BranchTensors values() const;

    DeviceTensor q, gate;
    std::vector<std::unique_ptr<DeviceTensor>> k, v;
  };

  AttentionKind kind_;
  Place place_;
  cpnsa::Attention attention_;
  Tensors inputs_, gradients_;
  DeviceTensor out_, dout_;
  std::unique_ptr<Compressor> compress_k_, compress_v_;  // none where the compressor has no parameters
  DeviceMemory workspace_, saved_memory_;
  cpnsa::SavedForward saved_;
  cpnsa::AttentionInputs arguments_;
};

}  // namespace model
