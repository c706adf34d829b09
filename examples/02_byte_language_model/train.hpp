#pragma once

#include "options.hpp"
#include "tools/ranks.hpp"

namespace language_model {

/// Trains the model on this rank, together with the other ranks, and writes the curve on rank 0. Collective; an
/// error that one rank finds ends all ranks with the same cpnsa::Error.
void train(const Options& options, const cpnsa::tool::RankPlace& place);

}  // namespace language_model
