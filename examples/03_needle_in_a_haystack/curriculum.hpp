#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "instance.hpp"

namespace needle {

/// A part of the training: haystacks of one length, packed to the number of tokens of a step.
struct Lesson {
  std::string_view teaches;
  std::int64_t length;   ///< tokens of a haystack
  std::int64_t needles;  ///< needles in a haystack
  std::int64_t nearest;  ///< minimum distance of a question from its needle
  bool alternates;       ///< every other step uses the summaries alone
  std::int64_t steps;
};

/// The lessons, scaled to Options::steps and Options::tokens; at least one step each.
std::vector<Lesson> curriculum(const Options& options);

/// Called after each step with the lesson, its step (from 1), the reach, and the loss in nats per question.
using StepObserver = std::function<void(const Lesson&, std::int64_t, Reach, double)>;

/// Trains on the lessons, each with a new optimizer, and returns the learnt values. Collective.
Values learn(const Options& options, model::Operations& operations, cpnsa::Communicator& communicator,
             const StepObserver& observe);

}  // namespace needle
