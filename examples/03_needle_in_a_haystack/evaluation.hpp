#pragma once

#include <functional>

#include "grid.hpp"
#include "haystack.hpp"
#include "instance.hpp"

namespace needle {

/// The haystack of a length and a number from 1; no such haystack is learnt from.
Haystack evaluation_haystack(const Options& options, std::int64_t length, std::int64_t number);

/// Told after each sequence: its length, its number (from 1), and how many there are of this length.
using SequenceObserver = std::function<void(std::int64_t, std::int64_t, std::int64_t)>;

/// Asks for the needles of test haystacks; the ranks share each sequence. All ranks get the same grid. Collective.
Grid evaluate(const Options& options, const Values& values, model::Operations& operations,
              cpnsa::Communicator& communicator, const SequenceObserver& observe);

}  // namespace needle
