#pragma once

#include <span>
#include <string>

#include "curve.hpp"

namespace language_model {

/// An SVG picture of loss curves under a title, long ones also as means of 20 steps, with a dashed line at the unigram
/// entropy of the text (nats per byte).
std::string plot(std::span<const Curve> curves, double unigram_entropy, const std::string& title);

}  // namespace language_model
