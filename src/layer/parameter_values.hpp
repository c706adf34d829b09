#pragma once

#include <string>

#include "cpnsa/attention.hpp"

namespace cpnsa {

/// Words that ranks compare, one per parameter: "compress_k_w1=5f3a... compress_k_b1=none". Copies parameters that the
/// host cannot reach, and waits for the stream, up to the communicator's deadline.
std::string parameter_values(const AttentionInputs& inputs, Device& device, Communicator& communicator, Stream stream);

}  // namespace cpnsa
