#include "comm/nccl/nccl_comm.hpp"

#include <fmt/format.h>

#include <exception>
#include <future>
#include <thread>
#include <utility>

#include "comm/nccl/nccl_call.hpp"
#include "comm/operation.hpp"
#include "comm/wait.hpp"

namespace cpnsa::nccl {
namespace {

// How long a rank that finalizes, destroys or aborts a communicator waits for the other ranks.
constexpr std::chrono::seconds parting{10};

// Runs a call that can block on other ranks on a thread that is detached, so that a rank can always leave.
std::future<ncclResult_t> call_on_helper(std::function<ncclResult_t()> call) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::packaged_task<ncclResult_t()> task([device, call = std::move(call)] {
    check(cudaSetDevice(device), "cudaSetDevice");
    return call();
  });
  std::future<ncclResult_t> result = task.get_future();
  std::thread(std::move(task)).detach();
  return result;
}

// The call's result, or ncclInProgress after `parting`.
ncclResult_t call_with_limit(std::function<ncclResult_t()> call) {
  std::future<ncclResult_t> result = call_on_helper(std::move(call));
  return result.wait_for(parting) == std::future_status::ready ? result.get() : ncclInProgress;
}

std::chrono::milliseconds deadline_of(const Options& options) {
  return options.deadline ? *options.deadline : initial_deadline();
}

ncclResult_t state_of(ncclComm_t handle) {
  ncclResult_t state = ncclSuccess;
  check(ncclCommGetAsyncError(handle, &state), "ncclCommGetAsyncError", handle);
  return state;
}

// Waits for ranks until `done` returns true.
void wait_until(const std::function<bool()>& done, const char* call, std::chrono::milliseconds deadline) {
  const comm::Deadline end(deadline);
  comm::Backoff backoff;
  comm::HostPoll host;
  while (!done()) {
    host.look();
    comm::check_interrupt();
    if (end.is_over())
      throw DeadlineError(fmt::format("{}: waited {} for the other ranks", call, comm::text_of(deadline)));
    backoff.pause();
  }
}

// Throws unless a call of the communicator succeeded, after waiting for it where it goes on in the background.
void settle_call(ncclComm_t handle, ncclResult_t status, const char* call, std::chrono::milliseconds deadline) {
  wait_until(
      [&] {
        if (status == ncclInProgress) status = state_of(handle);
        return status != ncclInProgress;
      },
      call, deadline);
  check(status, call, handle);
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
  try {
    make(id, size, rank, options);
  } catch (const std::exception&) {
    abort();
    throw;
  }
}

void NcclComm::make(const ncclUniqueId& id, int size, int rank, const Options& options) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = options.name.c_str();
  const std::chrono::milliseconds deadline = deadline_of(options);
  ncclResult_t status = ncclCommInitRankConfig(&parent_, size, id, rank, &config);
  settle_call(parent_, status, "ncclCommInitRankConfig", deadline);
  config.blocking = 1;
  status = ncclCommSplit(parent_, 0, rank, &handle_, &config);
  if (status != ncclInProgress) check(status, "ncclCommSplit", parent_);
  settle_call(parent_, ncclInProgress, "ncclCommSplit", deadline);  // the handle is there once the parent is done
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
  for (ncclComm_t* const own : {&handle_, &parent_}) {
    const ncclComm_t handle = *own;
    const ncclResult_t status = call_with_limit([handle] { return ncclCommFinalize(handle); });
    if (own == &handle_ && status == ncclInProgress)
      throw DeadlineError(fmt::format("ncclCommFinalize: waited {} for the other ranks", comm::text_of(parting)));
    settle_call(handle, status, "ncclCommFinalize", parting);
    *own = nullptr;
    call_with_limit([handle] { return ncclCommDestroy(handle); });
  }
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
  settle_call(handle_, status, call, deadline);
}

void NcclComm::connect(std::function<ncclResult_t()> call, const char* name, std::chrono::milliseconds deadline) const {
  std::future<ncclResult_t> result = call_on_helper(std::move(call));
  wait_until([&] { return result.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }, name, deadline);
  settle(result.get(), name, deadline);
}

void NcclComm::check_enqueued() const {
  const ncclResult_t state = state_of(handle_);
  if (state != ncclInProgress) check(state, "ncclCommGetAsyncError", handle_);
}

void NcclComm::abort() noexcept {
  if (!owned_) return;
  for (ncclComm_t* const own : {&handle_, &parent_}) {
    if (!*own) continue;
    try {
      call_with_limit([handle = std::exchange(*own, nullptr)] { return ncclCommAbort(handle); });
    } catch (const std::exception&) {  // no thread to be had, or no device: what is enqueued stays as it is
    }
  }
}

}  // namespace cpnsa::nccl
