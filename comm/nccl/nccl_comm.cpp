#include "comm/nccl/nccl_comm.hpp"

#include <fmt/format.h>

#include <exception>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "comm/nccl/nccl_call.hpp"
#include "comm/operation.hpp"
#include "comm/wait.hpp"

namespace cpnsa::nccl {
namespace {

// How long a rank that finalizes, destroys or aborts a communicator waits for the other ranks.
constexpr std::chrono::seconds parting{10};

// Runs a call that can block on other ranks, though NCCL does not document it, on a thread that is detached after
// `limit`, so that a rank can always leave. Returns the call's result, or ncclInProgress.
ncclResult_t call_with_limit(std::chrono::milliseconds limit, std::function<ncclResult_t()> call) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  auto result = std::make_shared<std::promise<ncclResult_t>>();
  std::future<ncclResult_t> future = result->get_future();
  std::thread([device, result, call = std::move(call)] {
    cudaSetDevice(device);
    result->set_value(call());
  }).detach();
  return future.wait_for(limit) == std::future_status::ready ? future.get() : ncclInProgress;
}

std::chrono::milliseconds deadline_of(const Options& options) {
  return options.deadline ? *options.deadline : initial_deadline();
}

ncclResult_t state_of(ncclComm_t handle) {
  ncclResult_t state = ncclSuccess;
  check(ncclCommGetAsyncError(handle, &state), "ncclCommGetAsyncError", handle);
  return state;
}

}  // namespace

NcclComm::NcclComm(ncclComm_t borrowed) : handle_(borrowed), owned_(false) {
  if (!borrowed) throw ArgumentError("nccl::make_communicator: found a null ncclComm_t, expected a communicator");
  settle(state_of(borrowed), "ncclCommGetAsyncError", initial_deadline());
}

NcclComm::NcclComm(const ncclUniqueId& id, int size, int rank, const Options& options) : owned_(true) {
  if (size < 1 || rank < 0 || rank >= size)
    throw ArgumentError(
        fmt::format("nccl::make_communicator: found rank {} of {}, expected 0 <= rank < size", rank, size));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = options.name.c_str();
  const ncclResult_t status = ncclCommInitRankConfig(&handle_, size, id, rank, &config);
  try {
    settle(status, "ncclCommInitRankConfig", deadline_of(options));
  } catch (const std::exception&) {
    abort();
    throw;
  }
}

NcclComm::~NcclComm() {
  if (!owned_ || !handle_) return;
  try {
    finish();
  } catch (const std::exception&) {  // the others are gone, or an error is pending
    abort();
  }
}

void NcclComm::finish() {
  const ncclComm_t handle = handle_;
  settle(call_with_limit(parting, [handle] { return ncclCommFinalize(handle); }), "ncclCommFinalize", parting);
  handle_ = nullptr;
  call_with_limit(parting, [handle] { return ncclCommDestroy(handle); });
}

int NcclComm::rank() const {
  int rank = 0;
  check(ncclCommUserRank(handle_, &rank), "ncclCommUserRank", handle_);
  return rank;
}

int NcclComm::size() const {
  int size = 0;
  check(ncclCommCount(handle_, &size), "ncclCommCount", handle_);
  return size;
}

int NcclComm::device() const {
  int device = 0;
  check(ncclCommCuDevice(handle_, &device), "ncclCommCuDevice", handle_);
  return device;
}

void NcclComm::settle(ncclResult_t status, const char* call, std::chrono::milliseconds deadline) const {
  const comm::Deadline end(deadline);
  comm::Backoff backoff;
  while (status == ncclInProgress) {
    comm::check_interrupt();
    if (end.is_over())
      throw DeadlineError(fmt::format("{}: waited {} for the other ranks", call, comm::text_of(deadline)));
    backoff.pause();
    status = state_of(handle_);
  }
  check(status, call, handle_);
}

void NcclComm::check_enqueued() const {
  const ncclResult_t state = state_of(handle_);
  if (state != ncclInProgress) check(state, "ncclCommGetAsyncError", handle_);
}

void NcclComm::abort() noexcept {
  if (!owned_ || !handle_) return;
  try {
    call_with_limit(parting, [handle = std::exchange(handle_, nullptr)] { return ncclCommAbort(handle); });
  } catch (const std::exception&) {  // no thread to be had, or no device: what is enqueued stays as it is
  }
}

}  // namespace cpnsa::nccl
