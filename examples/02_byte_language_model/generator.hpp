#pragma once

#include <cstdint>
#include <string>

#include "checkpoint.hpp"
#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace language_model {

struct GenerateOptions {
  std::string model = std::string("language_model/") + checkpoint_name;
  std::string prompt = "The licence";
  std::int64_t tokens = 200;  ///< bytes to append
  std::int64_t chunk = 256;   ///< bytes of the prompt that one step reads
  cpnsa::tool::ExecutionOptions execution;

  std::string describe() const;  ///< what must be equal on all ranks, on one line
};

/// Continues the prompt with the most likely byte each time, over a cache that is sharded over the ranks. Rank 0 prints
/// the text to standard output, and what it took to standard error. Collective.
void generate(const GenerateOptions& options, const cpnsa::tool::RankPlace& place);

}  // namespace language_model
