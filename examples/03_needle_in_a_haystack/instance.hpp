#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "cpnsa/partition.hpp"
#include "options.hpp"
#include "retriever.hpp"

namespace needle {

/// The part of the sequence that a query can see: everything, or its neighbourhood and the summaries.
enum class Reach { all, summaries };

/// How the model attends: NSA with small blocks. A query sees 16 blocks of 16 tokens and the last 64, however long the
/// sequence is; summaries of 8 tokens decide which blocks. Reach::summaries leaves a query only its own block, a window
/// of 8 and the summaries.
model::AttentionKind attention_of(const Options& options, cpnsa::DType dtype, Reach reach);

/// The values of all parameters on the host, the same on every rank.
using Values = std::vector<double>;

/// This rank's instance of the model for sequences of one shape, sharded by one partition.
class Instance {
 public:
  /// Uses the given parameter values, or new ones if `values` is empty. Collective.
  Instance(const Options& options, const model::AttentionKind& kind, std::span<const std::int64_t> cu_seqlens,
           model::Operations& operations, cpnsa::Communicator& communicator, const Values& values);

  std::span<const std::int64_t> positions() const { return positions_; }  ///< positions of this rank's rows
  model::Parameters& parameters() { return parameters_; }
  Retriever& retriever() { return retriever_; }
  Values values() const;

 private:
  cpnsa::Partition partition_;
  std::vector<std::int64_t> positions_;
  model::Parameters parameters_;
  Retriever retriever_;
};

}  // namespace needle
