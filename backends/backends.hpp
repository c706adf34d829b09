#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "backends/built.hpp"  // has_cuda, has_mpi, has_nccl
#include "backends/random_rows.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"

// The parts that a build may lack, for the command, the C interface, the Python package and the examples. Each function
// is defined twice, in with/ and in without/ under the same file name; CMake compiles one of the two. Only with/
// includes headers of CUDA, MPI and NCCL. The functions of without/ throw UnsupportedError, which names the option to
// build with.
namespace cpnsa::backends {

// --- cuda.cpp: cpnsa_backends_cuda ---------------------------------------------------------------------------------
int cuda_devices();  ///< GPUs that this process sees; 0 without CUDA
std::unique_ptr<Device> make_cuda_device(int index);

// --- random_fill.{cu,cpp}: cpnsa_backends_random_fill --------------------------------------------------------------
/// Enqueues: destination[i, column] = numbers.at(first_row + i, column) for `rows` rows in the memory of the current
/// GPU, of bf16 or f16; UnsupportedError for other types.
void fill_random(void* destination, DType dtype, const RandomRows& numbers, std::int64_t first_row, std::int64_t rows,
                 Stream stream);

// --- mpi.cpp: cpnsa_backends_mpi -----------------------------------------------------------------------------------
/// This process's part in an MPI job. MPI is initialised when it is made, and finalised when it is destroyed, which
/// waits for every process: after a failure call abort_mpi_job() instead.
class MpiJob {
 public:
  virtual ~MpiJob() = default;
  virtual Communicator& communicator() = 0;
  virtual int local_rank() const = 0;  ///< among the processes of this host
  virtual int local_size() const = 0;
};
std::unique_ptr<MpiJob> make_mpi_job(std::chrono::milliseconds deadline);

/// Ends all processes of the MPI job, stopped ones too, with this exit status. Returns only if MPI is not initialised,
/// and in a build without MPI.
void abort_mpi_job(int status);

// --- nccl.cpp: cpnsa_backends_nccl ---------------------------------------------------------------------------------
inline constexpr std::size_t nccl_id_bytes = 128;  ///< of an ncclUniqueId

/// Joins the ranks of `control`, each with a GPU of its own, `device`; collective. `control` must outlive it.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Device& device,
                                                     std::chrono::milliseconds deadline);
/// Joins `ranks` ranks that share an ncclUniqueId of nccl_id_bytes bytes; collective.
std::unique_ptr<Communicator> make_nccl_communicator(const void* id, int rank, int ranks);
/// Over an ncclComm_t, which stays the caller's.
std::unique_ptr<Communicator> borrow_nccl_communicator(void* handle);
void make_nccl_id(void* id);  ///< writes nccl_id_bytes bytes

}  // namespace cpnsa::backends
