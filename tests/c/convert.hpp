#pragma once

// The library's types -> structs of the C interface.

#include "cpnsa/attention.hpp"
#include "cpnsa/cpnsa.h"

namespace cpnsa::test {

cpnsa_config to_c(const Config& config);
cpnsa_options to_c(const AttentionOptions& options);
cpnsa_tensor to_c(const TensorView& view);
cpnsa_tensors to_c(const AttentionInputs& inputs);
cpnsa_tensors to_c(const AttentionGradients& gradients);
/// Of ranges given one by one.
cpnsa_partition to_c(const Partition& partition);

/// Throws std::runtime_error with the interface's own text unless the call succeeded.
void check_c(cpnsa_status status);

}  // namespace cpnsa::test
