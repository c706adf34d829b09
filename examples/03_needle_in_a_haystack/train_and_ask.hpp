#pragma once

#include "options.hpp"
#include "tools/ranks.hpp"

namespace needle {

/// Trains the model, evaluates it, and writes the results on rank 0. Collective; an error that one rank finds ends all
/// ranks with the same cpnsa::Error.
void train_and_ask(const Options& options, const cpnsa::tool::RankPlace& place);

}  // namespace needle
