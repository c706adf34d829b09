#include "comm/nccl/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "comm/nccl/nccl_call.hpp"
#include "comm/wait.hpp"

namespace cpnsa::nccl {
namespace {

using comm::Operation;

// NCCL becomes slow with groups of many more messages.
constexpr int peers_per_group = 64;

// Polls of a stream before the host sleeps between them: a step's waits last about a millisecond.
constexpr int quick_polls = 20'000;

// How long the other ranks have to answer that they wait too.
constexpr std::chrono::milliseconds roll_call_limit{500};

// The communicators over each borrowed handle, which number their layers together.
class Borrowers {
 public:
  void add(ncclComm_t handle, const Communicator* communicator) {
    const std::lock_guard lock(mutex_);
    all_.emplace(handle, communicator);
  }
  void remove(const Communicator* communicator) {
    const std::lock_guard lock(mutex_);
    std::erase_if(all_, [&](const auto& entry) { return entry.second == communicator; });
  }
  /// One over this handle, or null.
  const Communicator* find(ncclComm_t handle) {
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(handle);
    return found == all_.end() ? nullptr : found->second;
  }

 private:
  std::mutex mutex_;
  std::multimap<ncclComm_t, const Communicator*> all_;
};

Borrowers& borrowers() {
  static Borrowers all;
  return all;
}

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
    : comm_(borrowed),
      rank_(comm_.rank()),
      size_(comm_.size()),
      device_(comm_.device()),
      guard_(*this, comm_, nullptr),
      staging_(device_) {
  if (const Communicator* other = borrowers().find(borrowed)) share(*other);
  borrowers().add(borrowed, this);
  recorder().set_owner(name(), rank_, size_);
}

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int size, int rank, const Options& options,
                                   Communicator* control)
    : comm_(id, size, rank, options),
      rank_(rank),
      size_(size),
      device_(comm_.device()),
      control_(control),
      guard_(*this, comm_, control),
      staging_(device_) {
  if (options.deadline) deadline_ = *options.deadline;
  if (control) share(*control);
  recorder().set_owner(name(), rank_, size_);
}

NcclCommunicator::~NcclCommunicator() {
  borrowers().remove(this);
}

void NcclCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  comm::check_deadline(deadline);
  deadline_ = deadline;
  if (control_) control_->set_deadline(deadline);
}

std::optional<comm::Failure> NcclGuard::look() {
  using comm::Failure;
  if (!control_) return std::nullopt;
  try {
    control_->check();
  } catch (const MismatchError& error) {
    return Failure{Failure::Kind::mismatch, error.what()};
  } catch (const InterruptedError& error) {
    return Failure{Failure::Kind::interrupted, error.what()};
  } catch (const DeadlineError& error) {
    return Failure{Failure::Kind::deadline, error.what()};
  } catch (const CommunicationError& error) {
    return Failure{Failure::Kind::aborted, error.what()};
  }
  return std::nullopt;
}

void NcclGuard::tell(const comm::Failure& failure) noexcept {
  if (control_) control_->abort(failure.reason);
}

// Pointers of another device, or of the host, would be taken for this device's.
void NcclCommunicator::check_device(Device& device) const {
  const CurrentDevice restored(device_);
  int found = -1;
  if (!device.host_accessible()) {
    device.activate();
    nccl::check(cudaGetDevice(&found), "cudaGetDevice");
  }
  if (found != device_)
    throw ArgumentError(fmt::format("device: found {}, expected cuda device {}, the NCCL communicator's",
                                    found < 0 ? std::string(device.name()) : fmt::format("cuda device {}", found),
                                    device_));
}

void NcclCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device&,
                                Stream stream) {
  comm::check_exchange(sends, receives, rank_, size_);
  guard_.run(Operation::exchange, comm::total_bytes(sends), comm::total_bytes(receives), [&] {
    const CurrentDevice current(device_);
    comm_.check_enqueued();
    enqueue(sends, receives, handle_of(stream));
  });
}

// NCCL has no tags: two ranks must put a message in the same group. The distance from sender to receiver, which both
// know, tells which.
void NcclCommunicator::enqueue(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                               cudaStream_t stream) {
  const auto group_of = [&](int from, int to) { return ((to - from + size_) % size_) / peers_per_group; };
  const int groups = (size_ + peers_per_group - 1) / peers_per_group;
  for (int index = 0; index < groups; ++index) {
    std::vector<SendMessage> outgoing;
    std::vector<ReceiveMessage> incoming;
    for (const SendMessage& message : sends)
      if (message.bytes > 0 && group_of(rank_, message.peer) == index) outgoing.push_back(message);
    for (const ReceiveMessage& message : receives)
      if (message.bytes > 0 && group_of(message.peer, rank_) == index) incoming.push_back(message);
    if (outgoing.empty() && incoming.empty()) continue;
    const bool is_first =
        std::any_of(outgoing.begin(), outgoing.end(), [&](const auto& m) { return !sent_to_.contains(m.peer); }) ||
        std::any_of(incoming.begin(), incoming.end(), [&](const auto& m) { return !received_from_.contains(m.peer); });
    make_call("ncclGroupEnd", is_first, [=, handle = comm_.get()] {
      Group group;
      for (const SendMessage& message : outgoing)
        check_grouped(ncclSend(message.data, message.bytes, ncclInt8, message.peer, handle, stream), "ncclSend",
                      handle);
      for (const ReceiveMessage& message : incoming)
        check_grouped(ncclRecv(message.data, message.bytes, ncclInt8, message.peer, handle, stream), "ncclRecv",
                      handle);
      return group.end();
    });
    if (!is_first) continue;
    for (const SendMessage& message : outgoing) sent_to_.insert(message.peer);
    for (const ReceiveMessage& message : incoming) received_from_.insert(message.peer);
  }
}

void NcclCommunicator::gather_equal(const void* own, void* all, std::size_t bytes, cudaStream_t stream) {
  make_call("ncclAllGather", !gathered_.contains(bytes),
            [=, handle = comm_.get()] { return ncclAllGather(own, all, bytes, ncclInt8, handle, stream); });
  gathered_.insert(bytes);
}

void NcclCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device&,
                                  Stream stream) {
  comm::check_parts(bytes, size_);
  guard_.run(Operation::all_gather, comm::part_of(bytes, rank_), comm::total_of(bytes), [&] {
    const CurrentDevice current(device_);
    comm_.check_enqueued();
    auto* const destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + comm::offset_of(bytes, rank_);
    const std::size_t own_bytes = bytes[static_cast<std::size_t>(rank_)];
    const bool equal = std::all_of(bytes.begin(), bytes.end(), [&](std::size_t part) { return part == own_bytes; });
    if (equal && own_bytes == 0) return;
    if (equal && size_ > 1) {
      gather_equal(own, all, own_bytes, handle_of(stream));
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
  guard_.run(Operation::all_gather_host, bytes, bytes * static_cast<std::size_t>(size_), [&] {
    if (control_)
      control_->all_gather_host(own, all, bytes);
    else
      gather_through_device(name_of(Operation::all_gather_host), own, all, bytes);
  });
}

void NcclCommunicator::barrier() {
  guard_.run(Operation::barrier, 0, 0, [&] {
    if (control_) {
      control_->barrier();
      return;
    }
    std::vector<char> all(static_cast<std::size_t>(size_));
    const char own = 0;
    gather_through_device(name_of(Operation::barrier), &own, all.data(), sizeof own);
  });
}

void NcclCommunicator::gather_through_device(std::string_view call, const void* own, void* all, std::size_t bytes) {
  const std::size_t offset = static_cast<std::size_t>(rank_) * bytes, total = static_cast<std::size_t>(size_) * bytes;
  if (total == 0) return;
  const CurrentDevice current(device_);
  staging_.reserve(total);
  std::memcpy(staging_.host() + offset, own, bytes);
  staging_.to_device(offset, bytes);
  if (size_ > 1) gather_equal(staging_.device() + offset, staging_.device(), bytes, staging_.stream());
  staging_.to_host(total);
  drain(call, staging_.stream());
  std::memcpy(all, staging_.host(), total);
}

void NcclCommunicator::wait(Device&, Stream stream) {
  guard_.run([&] {
    const CurrentDevice current(device_);
    drain("wait", handle_of(stream));
  });
}

void NcclCommunicator::drain(std::string_view call, cudaStream_t stream) {
  comm::Wait wait(recorder(), deadline_, quick_polls);
  for (;;) {
    const cudaError_t status = cudaStreamQuery(stream);
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) nccl::check(status, "cudaStreamQuery");
    comm_.check_enqueued();
    guard_.check();
    if (!wait.pause()) throw_late(call);
  }
}

void NcclCommunicator::throw_late(std::string_view call) {
  const std::vector<int> silent = control_ ? control_->silent_ranks(roll_call_limit) : std::vector<int>();
  if (!silent.empty()) throw DeadlineError(comm::describe_late(call, rank_, deadline_, silent));
  throw DeadlineError(fmt::format("{}: rank {} waited {} for the other ranks", call, rank_, comm::text_of(deadline_)));
}

std::vector<int> NcclCommunicator::silent_ranks(std::chrono::milliseconds limit) {
  return control_ ? control_->silent_ranks(limit) : std::vector<int>();
}

void NcclCommunicator::check() {
  guard_.run([&] { comm_.check_enqueued(); });
}

std::unique_ptr<Communicator> make_communicator(ncclComm_t borrowed) {
  return std::make_unique<NcclCommunicator>(borrowed);
}

std::unique_ptr<Communicator> make_communicator(const ncclUniqueId& id, int size, int rank, const Options& options) {
  return std::make_unique<NcclCommunicator>(id, size, rank, options, nullptr);
}

std::unique_ptr<Communicator> make_communicator(Communicator& control, Device& device, const Options& options) {
  const FlightRecorder::Call call(control.recorder(), "nccl::make_communicator");
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
