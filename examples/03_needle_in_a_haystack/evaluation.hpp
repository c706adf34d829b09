#pragma once

#include <functional>

#include "grid.hpp"
#include "haystack.hpp"
#include "instance.hpp"

namespace needle {

/// The test haystack of a length with a number from 1; it is not part of the training.
Haystack evaluation_haystack(const Options& options, std::int64_t length, std::int64_t number);

/// Called after each sequence with its length, its number (from 1), and the number of sequences of this length.
using SequenceObserver = std::function<void(std::int64_t, std::int64_t, std::int64_t)>;

/// Asks for the needles of test haystacks; each sequence is sharded over the ranks. All ranks get the same grid.
/// Collective.
Grid evaluate(const Options& options, const Values& values, model::Operations& operations,
              cpnsa::Communicator& communicator, const SequenceObserver& observe);

}  // namespace needle
