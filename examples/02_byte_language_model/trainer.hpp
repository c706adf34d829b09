#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "examples/model/adamw.hpp"
#include "examples/model/all_reduce.hpp"
#include "examples/model/transformer.hpp"
#include "options.hpp"
#include "text.hpp"

namespace language_model {

/// The results of a step, summed over the ranks.
struct StepReport {
  double loss = 0;             ///< mean over the sequence, nats per byte
  double attention_bytes = 0;  ///< bytes received by cpnsa
  double gradient_bytes = 0;   ///< bytes received by the all-reduce of gradients
  double blocks_fetched = 0;   ///< (block, KV head) pairs in all layers
};

/// A rank's model and its part of the sequence. Both calls are collective.
class Trainer {
 public:
  Trainer(const Options& options, const Text& text, model::Operations& operations, cpnsa::Communicator& communicator);

  StepReport step(std::int64_t index);

  std::int64_t parameters() const { return parameters_.count(); }
  std::vector<double> values() const { return parameters_.read_values(); }  ///< not collective

 private:
  const Options& options_;
  const Text& text_;
  cpnsa::Communicator& communicator_;
  model::Operations& operations_;
  model::AttentionKind kind_;
  cpnsa::Partition partition_;
  std::vector<std::int64_t> tokens_;  // the sequence's tokens of this rank's rows
  model::Parameters parameters_;
  model::Transformer transformer_;
  model::AllReduce all_reduce_;
  model::AdamW optimizer_;
};

}  // namespace language_model
