#pragma once

#include <memory>
#include <vector>

#include "cpnsa/attention.hpp"
#include "examples/model/compressor.hpp"
#include "examples/model/tensor.hpp"

namespace model {

/// The inputs of attention for this rank's rows, or their gradients; narrow. `k` and `v` have one tensor for each
/// branch (compressed, selected, window), or one that all three share.
struct AttentionTensors {
  Tensor q;               // [rows, H d_qk]
  std::vector<Tensor> k;  // [rows, G d_qk]
  std::vector<Tensor> v;  // [rows, G d_v]
  Tensor gate;            // [rows, H 3]
};

/// The kind of attention of a layer.
struct AttentionKind {
  cpnsa::Config config;
  cpnsa::AttentionOptions options;
  int key_value_pairs = 3;  ///< 3: each branch has its own keys and values; 1: the branches share them
  FirstSummaries first_summaries = FirstSummaries::random;
  bool gated = true;  ///< false: only the window branch, with gates 0, 0, 1

  /// NSA with small blocks, for sequences of a few thousand tokens.
  static AttentionKind nsa(std::int64_t num_q_heads, std::int64_t num_kv_heads, std::int64_t head_dim);
  /// Causal attention to every token: the window is the whole sequence.
  AttentionKind full(std::int64_t tokens) const;
};

/// Workspace for one forward or one backward of any layer at a time.
class Workspace {
 public:
  explicit Workspace(Operations& operations) : operations_(operations) {}

  void reserve(std::size_t bytes) {
    if (bytes > memory_.bytes()) memory_ = Memory(), memory_ = Memory(operations_, bytes);
  }
  void* data() const { return memory_.data(); }

 private:
  Operations& operations_;
  Memory memory_;
};

class DecodingCache;

/// A cpnsa::Attention with its memory. Only this class calls the library's forward and backward.
class ShardedAttention {
 public:
  ShardedAttention(Parameters& parameters, const AttentionKind& kind, const cpnsa::Partition& partition,
                   cpnsa::Communicator& communicator, Workspace& workspace);

  const Tensor& forward(AttentionTensors inputs);  ///< [rows, H d_v]
  /// The next rows of a sequence whose earlier tokens are in the cache: [rows, H d_v].
  Tensor step(const AttentionTensors& inputs, DecodingCache& cache, int layer) const;
  AttentionTensors backward(const TensorView& dout);  ///< compressor gradients go to the Parameters
  const Tensor& out() const { return out_; }          ///< the output of the last forward
  cpnsa::Statistics statistics() { return attention_.statistics(); }

 private:
  cpnsa::BranchTensors branches(const std::vector<Tensor>& tensors, std::int64_t dim) const;
  cpnsa::AttentionInputs arguments(const AttentionTensors& inputs) const;

  AttentionKind kind_;
  Operations& operations_;
  cpnsa::Attention attention_;
  Workspace& workspace_;
  std::unique_ptr<Compressor> compress_k_, compress_v_;  // null if the compressor has no parameters
  AttentionTensors inputs_;
  Tensor out_;
  Memory saved_memory_;
  cpnsa::SavedForward saved_;
};

}  // namespace model
