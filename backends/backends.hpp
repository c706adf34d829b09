#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backends/built.hpp"  // has_cuda, has_mpi, has_nccl
#include "backends/random_rows.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/decode_forecast.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/info.hpp"

// The parts that a build may lack, for the command, the C interface, the Python package and the examples. Each function
// is defined twice, in with/ and in without/ under the same file name; CMake compiles one of the two. Only with/
// includes headers of CUDA, MPI and NCCL. The functions of without/ throw UnsupportedError, which names the option to
// build with.
namespace cpnsa::backends {

// --- cuda.cpp: cpnsa_backends_cuda ---------------------------------------------------------------------------------
int cuda_devices();  ///< GPUs that this process sees; 0 without CUDA
std::unique_ptr<Device> make_cuda_device(int index);
std::vector<LibraryVersion> cuda_versions();  ///< empty without CUDA
std::vector<GpuInfo> cuda_gpus();             ///< empty without CUDA
/// See cuda::kernels_of().
std::vector<OpKernel> cuda_kernels_of(const Config& config, DType dtype, int capability);

/// See cuda::decode_memory().
DecodeMemory cuda_decode_memory(const DecodeSize& size);

/// Work that was captured from a stream (a CUDA graph).
class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
  virtual void enqueue(Stream stream) = 0;  ///< all of it, by one call
};
/// Captures what `enqueue` enqueues on a stream of the current GPU, in place of running it. Errors: DeviceError.
std::unique_ptr<CapturedWork> capture(Stream stream, const std::function<void()>& enqueue);

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

std::vector<LibraryVersion> mpi_versions();  ///< empty without MPI

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
void make_nccl_id(void* id);                  ///< writes nccl_id_bytes bytes
std::vector<LibraryVersion> nccl_versions();  ///< empty without NCCL

}  // namespace cpnsa::backends
