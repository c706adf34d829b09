#pragma once

#include <memory>

#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"

// What the interface can be built with. Each function is defined twice, in with/ and in without/ under the same file
// name, and CMake links one of them; only with/ includes a backend's headers. Those of without/ throw UnsupportedError.
namespace cpnsa::c::backends {

// --- cuda.cpp ----------------------------------------------------------------------------------------------------
bool has_cuda();
std::unique_ptr<Device> make_cuda_device(int index);

// --- nccl.cpp ----------------------------------------------------------------------------------------------------
bool has_nccl();
std::unique_ptr<Communicator> borrow_nccl(void* handle);
void make_nccl_id(void* id);  ///< CPNSA_NCCL_UNIQUE_ID_BYTES
std::unique_ptr<Communicator> make_nccl(const void* id, int rank, int ranks);

}  // namespace cpnsa::c::backends
