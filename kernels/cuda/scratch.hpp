#pragma once

// Bytes of StageContext::scratch of the stages that want any, each from the code that lays it out.

#include <cstddef>

#include "cpnsa/stages.hpp"

namespace cpnsa::cuda {

std::size_t compress_scratch_bytes(const ProblemSize&);
std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize&);
std::size_t selected_attention_backward_scratch_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda
