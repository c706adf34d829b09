#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "cpnsa/arena.hpp"
#include "cpnsa/attention.hpp"
#include "cpnsa/ops.hpp"

namespace cpnsa {

/// Parameters that a layer can have: those of the two compressors, and the sinks.
inline constexpr std::size_t max_parameters = 14;

/// Elements of all parameters of both compressors.
std::int64_t count_parameters(const Config& config);

CompressorPointers pointers_of(const CompressorTensors& tensors);

/// Calls `visit` with every parameter gradient that is given, in a fixed order.
void for_each_parameter(const AttentionGradients& gradients, const std::function<void(const TensorView&)>& visit);
/// Parameter gradients of `dtype` in `memory`, one for each that is given in `like`.
AttentionGradients parameters_in(Arena& memory, const AttentionGradients& like, DType dtype);
/// One character per parameter gradient, 1 if it is given: ranks that sum them must be given the same.
std::string given_parameters(const AttentionGradients& gradients);

}  // namespace cpnsa
