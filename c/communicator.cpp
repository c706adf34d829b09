#include "cpnsa/threads/communicator.hpp"

#include <fmt/format.h>

#include <vector>

#include "backends/backends.hpp"
#include "c/callbacks.hpp"
#include "c/objects.hpp"

using namespace cpnsa::c;

namespace {

static_assert(cpnsa::backends::nccl_id_bytes == CPNSA_NCCL_UNIQUE_ID_BYTES);

template <class Make>
void create_communicator(cpnsa_communicator* out, Make make) {
  create(communicators(), out, "communicator", [&] { return std::make_shared<CommunicatorObject>(make()); });
}

// Ten years at most: a deadline is added to a point in time.
void check_deadline(int64_t milliseconds) {
  constexpr int64_t max_milliseconds = int64_t{10} * 365 * 24 * 3600 * 1000;
  if (milliseconds < 1 || milliseconds > max_milliseconds)
    throw cpnsa::ArgumentError(fmt::format("milliseconds: found {}, expected 1 to {}", milliseconds, max_milliseconds));
}

}  // namespace

cpnsa_status cpnsa_communicator_create_threads(int ranks, cpnsa_communicator* out) {
  return guarded(__func__, [&] {
    not_null(out, "communicators");
    std::vector<std::shared_ptr<CommunicatorObject>> objects;
    for (auto& communicator : cpnsa::threads::make_communicators(ranks))
      objects.push_back(std::make_shared<CommunicatorObject>(std::move(communicator)));
    for (auto& object : objects) *out++ = communicators().add(std::move(object));
  });
}

cpnsa_status cpnsa_communicator_borrow_nccl(void* nccl_comm, cpnsa_communicator* out) {
  return guarded(__func__, [&] {
    create_communicator(out, [&] { return cpnsa::backends::borrow_nccl_communicator(nccl_comm); });
  });
}

cpnsa_status cpnsa_nccl_unique_id(void* id) {
  return guarded(__func__, [&] { cpnsa::backends::make_nccl_id(&not_null(static_cast<char*>(id), "id")); });
}

cpnsa_status cpnsa_communicator_create_nccl(const void* id, int rank, int ranks, cpnsa_communicator* out) {
  return guarded(__func__, [&] {
    create_communicator(out, [&] {
      return cpnsa::backends::make_nccl_communicator(&not_null(static_cast<const char*>(id), "id"), rank, ranks);
    });
  });
}

cpnsa_status cpnsa_communicator_create_callbacks(int rank, int ranks, const cpnsa_callbacks* callbacks,
                                                 cpnsa_communicator* out) {
  return guarded(__func__,
                 [&] { create_communicator(out, [&] { return make_callback_communicator(rank, ranks, callbacks); }); });
}

cpnsa_status cpnsa_communicator_rank(cpnsa_communicator communicator, int* rank) {
  return guarded(__func__, [&] { not_null(rank, "rank") = communicators().find(communicator)->communicator->rank(); });
}

cpnsa_status cpnsa_communicator_ranks(cpnsa_communicator communicator, int* ranks) {
  return guarded(__func__,
                 [&] { not_null(ranks, "ranks") = communicators().find(communicator)->communicator->size(); });
}

cpnsa_status cpnsa_set_default_deadline(int64_t milliseconds) {
  return guarded(__func__, [&] {
    check_deadline(milliseconds);
    cpnsa::set_default_deadline(std::chrono::milliseconds(milliseconds));
  });
}

cpnsa_status cpnsa_communicator_set_deadline(cpnsa_communicator communicator, int64_t milliseconds) {
  return guarded(__func__, [&] {
    const auto object = communicators().find(communicator);
    check_deadline(milliseconds);
    const InUse in_use(object->exclusive);
    object->communicator->set_deadline(std::chrono::milliseconds(milliseconds));
  });
}

cpnsa_status cpnsa_communicator_barrier(cpnsa_communicator communicator) {
  return guarded(__func__, [&] {
    const auto object = communicators().find(communicator);
    const InUse in_use(object->exclusive);
    object->communicator->barrier();
  });
}

cpnsa_status cpnsa_communicator_abort(cpnsa_communicator communicator, const char* reason) {
  return guarded(__func__,
                 [&] { communicators().find(communicator)->communicator->abort(reason ? reason : "no reason given"); });
}

cpnsa_status cpnsa_communicator_destroy(cpnsa_communicator communicator) {
  return guarded(__func__, [&] { communicators().remove(communicator); });
}
