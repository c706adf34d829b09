#include "tools/execution.hpp"

#include <fmt/format.h>
#include <stdlib.h>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::tool {
namespace {

bool gpu_computes(std::optional<DType> dtype) {
  return !dtype || *dtype == DType::bf16 || *dtype == DType::f16;
}

// auto: a GPU where there is one, unless the precision asked for is the CPU's alone.
DeviceKind decide_device(const ExecutionOptions& options) {
  if (options.device != DeviceKind::automatic) return options.device;
  return backends::cuda_devices() > 0 && gpu_computes(options.dtype) ? DeviceKind::cuda : DeviceKind::cpu;
}

DType default_dtype(DeviceKind device) {
  return device == DeviceKind::cuda ? DType::bf16 : DType::f32;
}

std::unique_ptr<Device> make_gpu(int index) {
  if (!backends::has_cuda)
    throw UnsupportedError("--device: found cuda, expected auto or cpu: this build has no CUDA (cmake --preset cuda)");
  if (backends::cuda_devices() == 0)
    throw UnsupportedError("--device: found cuda, expected auto or cpu: this machine has no GPU that CUDA can use");
  return backends::make_cuda_device(index);
}

}  // namespace

Execution::Execution(const ExecutionOptions& options, const RankPlace& place)
    : place_(place),
      device_kind_(decide_device(options)),
      dtype_(options.dtype.value_or(default_dtype(device_kind_))),
      deadline_(options.deadline_or_default()),
      options_(options.describe()) {
  const Communicator& control = place.control;
  if (options.ranks && *options.ranks != control.size())
    throw ArgumentError(fmt::format("--ranks: found {}, expected {}, the number of processes that were started",
                                    *options.ranks, control.size()));
  decide_transport(options);
  device_ = device_kind_ == DeviceKind::cuda ? make_gpu(gpu_index()) : cpu::make_device();
}

void Execution::decide_transport(const ExecutionOptions& options) {
  const bool by_mpi = place_.control.name() == "mpi";
  if (options.transport == TransportKind::threads && by_mpi)
    throw ArgumentError(fmt::format("--transport: found threads in a job of {} processes, expected auto, mpi or nccl",
                                    place_.control.size()));
  if (options.transport == TransportKind::nccl && !backends::has_nccl)
    throw UnsupportedError(
        "--transport: found nccl, expected auto, threads or mpi: this build has no NCCL (cmake --preset cuda)");
  if (options.transport == TransportKind::nccl && device_kind_ != DeviceKind::cuda)
    throw ArgumentError(fmt::format("--transport: found nccl with --device {}, expected cuda", name_of(device_kind_)));

  const bool a_gpu_a_rank = device_kind_ == DeviceKind::cuda && backends::cuda_devices() >= place_.local_size;
  if (options.transport == TransportKind::nccl && !a_gpu_a_rank && !by_mpi)
    throw ArgumentError(fmt::format(
        "--transport: found nccl with {} ranks in this process, expected at most {}, its GPUs; processes under mpirun "
        "may share a GPU",
        place_.local_size, backends::cuda_devices()));
  shares_gpu_ = options.transport == TransportKind::nccl && !a_gpu_a_rank;
  transport_ = options.transport;
  if (transport_ == TransportKind::automatic)
    transport_ = !by_mpi                              ? TransportKind::threads
                 : a_gpu_a_rank && backends::has_nccl ? TransportKind::nccl
                                                      : TransportKind::mpi;
}

// Threads exchange memory that all of them reach, so they share a GPU; processes, and NCCL's ranks, take one each.
int Execution::gpu_index() const {
  if (transport_ == TransportKind::threads || backends::cuda_devices() == 0) return 0;
  return place_.local_rank % backends::cuda_devices();
}

// NCCL refuses two ranks on one GPU unless they seem to be on different hosts that meet through sockets. That is slow
// and right: good for seeing that something works, never for timing it. What the user has set stays.
void Execution::isolate_nccl_host_id() const {
  const int rank = place_.control.rank();
  const auto set = [](const char* variable, const std::string& value) { ::setenv(variable, value.c_str(), 0); };
  set("NCCL_HOSTID", fmt::format("rank{}", rank));
  set("NCCL_P2P_DISABLE", "1");
  set("NCCL_SHM_DISABLE", "1");
  set("NCCL_NVLS_ENABLE", "0");
  if (place_.local_size == place_.control.size()) set("NCCL_SOCKET_IFNAME", "lo");
}

void Execution::connect() {
  if (shares_gpu_) isolate_nccl_host_id();
  if (transport_ == TransportKind::nccl) nccl_ = backends::make_nccl_communicator(place_.control, *device_, deadline_);
  communicator_ = nccl_ ? nccl_.get() : &place_.control;
}

std::string Execution::describe() const {
  return fmt::format("device={} transport={} dtype={} {}", name_of(device_kind_), name_of(transport_), name_of(dtype_),
                     options_);
}

}  // namespace cpnsa::tool
