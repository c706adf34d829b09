#include "comm/nccl/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "comm/idle.hpp"
#include "comm/nccl/nccl_call.hpp"

namespace cpnsa::nccl {
namespace {

using comm::Failure;
using comm::Operation;

// Groups of many more messages crawl.
constexpr int peers_a_group = 64;

// Looks at a stream before the host sleeps between them: what a step waits for comes within a millisecond or so.
constexpr int quick_looks = 20'000;

cudaStream_t handle_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

// A group that ends even if a call in it throws, or every later call would belong to it.
class Group {
 public:
  Group() { nccl::check(ncclGroupStart(), "ncclGroupStart", nullptr); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (open_) ncclGroupEnd();
  }
  ncclResult_t end() {
    open_ = false;
    return ncclGroupEnd();
  }

 private:
  bool open_ = true;
};

// The calls of an open group return before anything of them is done.
void check_grouped(ncclResult_t status, const char* call, ncclComm_t handle) {
  if (status != ncclInProgress) nccl::check(status, call, handle);
}

}  // namespace

NcclCommunicator::NcclCommunicator(ncclComm_t borrowed)
    : handle_(borrowed),
      rank_(handle_.rank()),
      size_(handle_.size()),
      device_(handle_.device()),
      host_gather_(device_) {}

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int size, int rank, const Options& options,
                                   Communicator* control)
    : handle_(id, size, rank, options),
      rank_(rank),
      size_(size),
      device_(handle_.device()),
      control_(control),
      deadline_(options.deadline),
      host_gather_(device_) {}

void NcclCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  deadline_ = deadline;
  if (control_) control_->set_deadline(deadline);
}

template <class Body>
void NcclCommunicator::run(std::string_view call, Body body) {
  if (failure_) failure_->raise();
  try {
    const CurrentDevice current(device_);
    body();
  } catch (const MismatchError& error) {
    fail(Failure::Kind::mismatch, error.what());
    throw;
  } catch (const DeadlineError& error) {
    fail(Failure::Kind::deadline, error.what());
    throw;
  } catch (const std::exception& error) {
    fail(Failure::Kind::aborted, fmt::format("rank {} gave up: {}: {}", rank_, call, error.what()));
    throw;
  }
}

// Pointers of another card, or of the host, would be read as this card's.
void NcclCommunicator::check_device(Device& device) const {
  const CurrentDevice restored(device_);
  int card = -1;
  if (!device.host_accessible()) {
    device.activate();
    nccl::check(cudaGetDevice(&card), "cudaGetDevice");
  }
  if (card != device_)
    throw ArgumentError(fmt::format("device: found {}, expected cuda device {}, the NCCL communicator's",
                                    card < 0 ? std::string(device.name()) : fmt::format("cuda device {}", card),
                                    device_));
}

void NcclCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device&,
                                Stream stream) {
  comm::check_exchange(sends, receives, rank_, size_);
  run(name_of(Operation::exchange), [&] {
    handle_.check_enqueued();
    enqueue(sends, receives, handle_of(stream));
  });
}

// NCCL has no tags: two ranks must put a message in the same group. The distance from sender to receiver, which both
// know, tells which.
void NcclCommunicator::enqueue(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                               cudaStream_t stream) {
  const auto group_of = [&](int from, int to) { return ((to - from + size_) % size_) / peers_a_group; };
  const int groups = (size_ + peers_a_group - 1) / peers_a_group;
  for (int index = 0; index < groups; ++index) {
    Group group;
    bool empty = true;
    for (const SendMessage& message : sends) {
      if (message.bytes == 0 || group_of(rank_, message.peer) != index) continue;
      check_grouped(ncclSend(message.data, message.bytes, ncclInt8, message.peer, handle_.get(), stream), "ncclSend",
                    handle_.get());
      empty = false;
    }
    for (const ReceiveMessage& message : receives) {
      if (message.bytes == 0 || group_of(message.peer, rank_) != index) continue;
      check_grouped(ncclRecv(message.data, message.bytes, ncclInt8, message.peer, handle_.get(), stream), "ncclRecv",
                    handle_.get());
      empty = false;
    }
    const ncclResult_t status = group.end();
    if (empty)
      nccl::check(status, "ncclGroupEnd", nullptr);
    else
      settle(status, "ncclGroupEnd");
  }
}

void NcclCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device&,
                                  Stream stream) {
  comm::check_parts(bytes, size_);
  run(name_of(Operation::all_gather), [&] {
    handle_.check_enqueued();
    auto* const destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + comm::offset_of(bytes, rank_);
    const std::size_t own_bytes = bytes[static_cast<std::size_t>(rank_)];
    const bool equal = std::all_of(bytes.begin(), bytes.end(), [&](std::size_t part) { return part == own_bytes; });
    if (equal && own_bytes == 0) return;
    if (equal && size_ > 1) {
      settle(ncclAllGather(own, all, own_bytes, ncclInt8, handle_.get(), handle_of(stream)), "ncclAllGather");
      return;
    }
    if (own_bytes > 0 && own != place)
      nccl::check(cudaMemcpyAsync(place, own, own_bytes, cudaMemcpyDeviceToDevice, handle_of(stream)),
                  "cudaMemcpyAsync");
    std::vector<SendMessage> sends;
    std::vector<ReceiveMessage> receives;
    std::byte* part = destination;
    for (int peer = 0; peer < size_; part += bytes[static_cast<std::size_t>(peer++)]) {
      if (peer == rank_) continue;
      sends.push_back({peer, place, own_bytes});
      receives.push_back({peer, part, bytes[static_cast<std::size_t>(peer)]});
    }
    enqueue(sends, receives, handle_of(stream));
  });
}

void NcclCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  const std::string_view call = name_of(Operation::all_gather_host);
  run(call, [&] {
    if (control_)
      control_->all_gather_host(own, all, bytes);
    else
      gather_through_card(call, own, all, bytes);
  });
}

void NcclCommunicator::barrier() {
  const std::string_view call = name_of(Operation::barrier);
  run(call, [&] {
    if (control_) {
      control_->barrier();
      return;
    }
    std::vector<char> all(static_cast<std::size_t>(size_));
    const char own = 0;
    gather_through_card(call, &own, all.data(), sizeof own);
  });
}

void NcclCommunicator::gather_through_card(std::string_view call, const void* own, void* all, std::size_t bytes) {
  const std::size_t offset = static_cast<std::size_t>(rank_) * bytes, total = static_cast<std::size_t>(size_) * bytes;
  if (total == 0) return;
  host_gather_.reserve(total);
  std::memcpy(host_gather_.host() + offset, own, bytes);
  host_gather_.to_card(offset, bytes);
  if (size_ > 1)
    settle(ncclAllGather(host_gather_.card() + offset, host_gather_.card(), bytes, ncclInt8, handle_.get(),
                         host_gather_.stream()),
           "ncclAllGather");
  host_gather_.to_host(total);
  drain(call, host_gather_.stream());
  std::memcpy(all, host_gather_.host(), total);
}

void NcclCommunicator::wait(Device&, Stream stream) {
  run("wait", [&] { drain("wait", handle_of(stream)); });
}

void NcclCommunicator::drain(std::string_view call, cudaStream_t stream) {
  const auto end = std::chrono::steady_clock::now() + deadline_;
  comm::Idle idle(quick_looks);
  for (;;) {
    const cudaError_t status = cudaStreamQuery(stream);
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) nccl::check(status, "cudaStreamQuery");
    handle_.check_enqueued();
    if (control_) control_->check();
    if (std::chrono::steady_clock::now() > end)
      throw DeadlineError(
          fmt::format("{}: rank {} waited {} for the other ranks", call, rank_, comm::text_of(deadline_)));
    idle.rest();
  }
}

void NcclCommunicator::check() {
  run("check", [&] {
    handle_.check_enqueued();
    if (control_) control_->check();
  });
}

void NcclCommunicator::abort(std::string_view reason) noexcept {
  try {
    fail(Failure::Kind::aborted, fmt::format("rank {} gave up: {}", rank_, reason));
  } catch (const std::exception&) {  // no memory for the reason
    fail(Failure::Kind::aborted, {});
  }
  if (control_) control_->abort(reason);
}

// Without its abort the streams would never drain, whose work waits for other ranks.
void NcclCommunicator::fail(Failure::Kind kind, std::string_view reason) noexcept {
  if (failure_) return;
  try {
    failure_ = Failure{kind, std::string(reason)};
  } catch (const std::exception&) {
    failure_ = Failure{kind, {}};
  }
  handle_.abort();
}

std::unique_ptr<Communicator> make_communicator(ncclComm_t borrowed) {
  return std::make_unique<NcclCommunicator>(borrowed);
}

std::unique_ptr<Communicator> make_communicator(const ncclUniqueId& id, int size, int rank, const Options& options) {
  return std::make_unique<NcclCommunicator>(id, size, rank, options, nullptr);
}

std::unique_ptr<Communicator> make_communicator(Communicator& control, Device& device, const Options& options) {
  ncclUniqueId own{};
  agree_on(control, "nccl::make_communicator: id", [&] {
    device.activate();
    if (control.rank() == 0) check(ncclGetUniqueId(&own), "ncclGetUniqueId", nullptr);
  });
  std::vector<ncclUniqueId> all(static_cast<std::size_t>(control.size()));
  control.all_gather_host(&own, all.data(), sizeof own);

  std::unique_ptr<Communicator> communicator;
  agree_on(control, "nccl::make_communicator: connection", [&] {
    communicator = std::make_unique<NcclCommunicator>(all.front(), control.size(), control.rank(), options, &control);
  });
  return communicator;
}

}  // namespace cpnsa::nccl
