#include "comm/nccl/handle.hpp"

#include <fmt/format.h>

#include <exception>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "comm/idle.hpp"
#include "comm/nccl/nccl_call.hpp"
#include "comm/operation.hpp"

namespace cpnsa::nccl {
namespace {

// How long a rank that lets go waits for the others, in all.
constexpr std::chrono::seconds parting{10};

// Runs a call that may wait for other ranks, though NCCL says of none that it does: whoever wants to leave is not to be
// kept. What has not ended after `limit` goes on alone, and holds what it holds. The result, or ncclInProgress.
ncclResult_t call_for(std::chrono::milliseconds limit, std::function<ncclResult_t()> call) {
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

ncclResult_t state_of(ncclComm_t handle) {
  ncclResult_t state = ncclSuccess;
  check(ncclCommGetAsyncError(handle, &state), "ncclCommGetAsyncError", handle);
  return state;
}

}  // namespace

Handle::Handle(ncclComm_t borrowed) : handle_(borrowed), owned_(false) {
  if (!borrowed) throw ArgumentError("nccl::make_communicator: found a null ncclComm_t, expected a communicator");
  settle(state_of(borrowed), "ncclCommGetAsyncError", Communicator::default_deadline);
}

Handle::Handle(const ncclUniqueId& id, int size, int rank, const Options& options) : owned_(true) {
  if (size < 1 || rank < 0 || rank >= size)
    throw ArgumentError(
        fmt::format("nccl::make_communicator: found rank {} of {}, expected 0 <= rank < size", rank, size));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = options.name.c_str();
  const ncclResult_t status = ncclCommInitRankConfig(&handle_, size, id, rank, &config);
  try {
    settle(status, "ncclCommInitRankConfig", options.deadline);
  } catch (const std::exception&) {
    abort();
    throw;
  }
}

Handle::~Handle() {
  if (!owned_ || !handle_) return;
  try {
    finish();
  } catch (const std::exception&) {  // the others are gone, or an error is pending
    abort();
  }
}

void Handle::finish() {
  const ncclComm_t handle = handle_;
  settle(call_for(parting, [handle] { return ncclCommFinalize(handle); }), "ncclCommFinalize", parting);
  handle_ = nullptr;
  call_for(parting, [handle] { return ncclCommDestroy(handle); });
}

int Handle::rank() const {
  int rank = 0;
  check(ncclCommUserRank(handle_, &rank), "ncclCommUserRank", handle_);
  return rank;
}

int Handle::size() const {
  int size = 0;
  check(ncclCommCount(handle_, &size), "ncclCommCount", handle_);
  return size;
}

int Handle::device() const {
  int device = 0;
  check(ncclCommCuDevice(handle_, &device), "ncclCommCuDevice", handle_);
  return device;
}

void Handle::settle(ncclResult_t status, const char* call, std::chrono::milliseconds deadline) const {
  const auto end = std::chrono::steady_clock::now() + deadline;
  comm::Idle idle;
  while (status == ncclInProgress) {
    if (std::chrono::steady_clock::now() > end)
      throw DeadlineError(fmt::format("{}: waited {} for the other ranks", call, comm::text_of(deadline)));
    idle.rest();
    status = state_of(handle_);
  }
  check(status, call, handle_);
}

void Handle::check_enqueued() const {
  const ncclResult_t state = state_of(handle_);
  if (state != ncclInProgress) check(state, "ncclCommGetAsyncError", handle_);
}

void Handle::abort() noexcept {
  if (!owned_ || !handle_) return;
  try {
    call_for(parting, [handle = std::exchange(handle_, nullptr)] { return ncclCommAbort(handle); });
  } catch (const std::exception&) {  // no thread to be had, or no card: what is enqueued stays as it is
  }
}

}  // namespace cpnsa::nccl
