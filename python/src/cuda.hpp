#pragma once

#include <memory>

#include "cpnsa/device.hpp"

namespace cpnsa::python {

// cuda.cpp or no_cuda.cpp, whichever is linked.
extern const bool has_cuda;
std::shared_ptr<Device> make_cuda_device(int index);  ///< UnsupportedError in a build without CUDA

}  // namespace cpnsa::python
