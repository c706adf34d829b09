// The module cpnsa._nccl: communicators over NCCL, for process groups of PyTorch.

#include <cuda_runtime_api.h>
#include <nanobind/stl/tuple.h>

#include <cstring>
#include <tuple>

#include "cpnsa/nccl/communicator.hpp"
#include "src/communicator.hpp"
#include "src/names.hpp"

namespace {

using namespace cpnsa;
using namespace cpnsa::python;

void check(ncclResult_t status, const char* call) {
  if (status != ncclSuccess) throw CommunicationError(fmt::format("{}: {}", call, ncclGetErrorString(status)));
}

std::tuple<int, int, int> version() {
  int code = 0;
  check(ncclGetVersion(&code), "ncclGetVersion");
  return {code / 10000, code % 10000 / 100, code % 100};
}

nb::bytes unique_id() {
  ncclUniqueId id{};
  check(ncclGetUniqueId(&id), "ncclGetUniqueId");
  return nb::bytes(id.internal, sizeof id.internal);
}

SharedCommunicator borrow(std::uintptr_t communicator, nb::object owner) {
  return {nccl::make_communicator(reinterpret_cast<ncclComm_t>(communicator)), std::move(owner)};
}

SharedCommunicator create(nb::bytes id, int size, int rank, int device, nb::object owner) {
  ncclUniqueId made{};
  if (id.size() != sizeof made.internal)
    throw ArgumentError(fmt::format("id: found {} bytes, expected {}", id.size(), sizeof made.internal));
  std::memcpy(made.internal, id.c_str(), sizeof made.internal);
  std::shared_ptr<Communicator> communicator;
  try {
    const nb::gil_scoped_release released;
    if (const cudaError_t status = cudaSetDevice(device); status != cudaSuccess)
      throw DeviceError(fmt::format("cudaSetDevice({}): {}", device, cudaGetErrorString(status)));
    communicator = nccl::make_communicator(made, size, rank);
  } catch (...) {
    raise_of_signal();
    throw;
  }
  return {std::move(communicator), std::move(owner)};
}

}  // namespace

NB_MODULE(_nccl, module) {
  using namespace nb::literals;
  nb::module_::import_("cpnsa._core");  // which has the type Communicator, and turns exceptions into Python's
  handle_signals();
  module.attr("id_bytes") = sizeof(ncclUniqueId::internal);
  module.def("version", &version, "Of the NCCL that this module runs on.");
  module.def("unique_id", &unique_id);
  module.def("borrow", &borrow, "communicator"_a, "owner"_a.none(),
             "Over an ncclComm_t, given as a number, which stays the owner's.");
  module.def("create", &create, "id"_a, "size"_a, "rank"_a, "device"_a, "owner"_a.none(),
             "Over a communicator of its own; collective.");
}
