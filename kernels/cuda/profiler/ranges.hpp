#pragma once

namespace cpnsa::cuda {

/// Ranges of the calling thread that profilers show, in NVTX's domain "cpnsa". Defined in with/ and in without/; CMake
/// compiles one of the two, because some installations of CUDA lack the headers of NVTX.
void begin_range(const char* name);
void end_range() noexcept;

}  // namespace cpnsa::cuda
