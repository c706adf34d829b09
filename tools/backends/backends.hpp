#pragma once

#include <memory>

#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"
#include "tools/random_rows.hpp"

// What the command can be built with. Each function is defined twice, in with/ and in without/ under the same file
// name, and CMake links one of them; only with/ includes a backend's headers.
namespace cpnsa::tool::backends {

// --- cuda.cpp ----------------------------------------------------------------------------------------------------
bool has_cuda();     ///< whether this build has the CUDA device
int cuda_devices();  ///< GPUs that this process sees; 0 without CUDA
/// UnsupportedError when there is no such GPU or no CUDA in this build.
std::unique_ptr<Device> make_cuda_device(int index);

// --- random_fill.{cu,cpp} ----------------------------------------------------------------------------------------
/// Enqueues: destination[i, column] = numbers.at(first_row + i, column) for `rows` rows in the memory of the current
/// card, of bf16 or f16. UnsupportedError without CUDA in this build.
void fill_on_card(void* destination, DType dtype, const RandomRows& numbers, std::int64_t first_row, std::int64_t rows,
                  Stream stream);

// --- mpi.cpp -----------------------------------------------------------------------------------------------------
bool has_mpi();

/// This process's part in an MPI job. MPI is initialised when it is made, and finalised when it is destroyed.
class MpiJob {
 public:
  virtual ~MpiJob() = default;
  virtual Communicator& communicator() = 0;
  virtual int local_rank() const = 0;  ///< among the processes of this host
  virtual int local_size() const = 0;
};
std::unique_ptr<MpiJob> make_mpi_job();

// --- nccl.cpp ----------------------------------------------------------------------------------------------------
bool has_nccl();

/// Joins the ranks of `control`, which each have a GPU of their own, `device`; collective. `control` must outlive it.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Device& device);

}  // namespace cpnsa::tool::backends
