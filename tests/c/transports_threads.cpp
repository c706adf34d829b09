#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "tests/c/convert.hpp"
#include "tests/c/transports.hpp"

namespace cpnsa::test {
namespace {

std::vector<int> rank_counts() {
  return {1, 2, 3, 4};
}

void run_threads(int ranks, const CTransport::Body& body) {
  std::vector<cpnsa_communicator> handles(static_cast<std::size_t>(ranks));
  check_c(cpnsa_communicator_create_threads(ranks, handles.data()));
  threads::run_ranks(ranks, [&](Communicator& communicator) {
    body(communicator, handles[static_cast<std::size_t>(communicator.rank())]);
  });
  for (const cpnsa_communicator handle : handles) check_c(cpnsa_communicator_destroy(handle));
}

// What a caller's callbacks are here: the threads' own communicator.
struct User {
  Communicator& inner;
  std::unique_ptr<Device> host = cpu::make_device();
  std::string text{};

  template <class Call>
  static int call(void* user, Call call) {
    auto& self = *static_cast<User*>(user);
    try {
      call(self);
      return 0;
    } catch (const std::exception& error) {
      self.text = error.what();
      return -1;
    }
  }
};

int exchange(void* user, const cpnsa_send* sends, std::size_t send_count, const cpnsa_receive* receives,
             std::size_t receive_count) {
  std::vector<SendMessage> out;
  std::vector<ReceiveMessage> in;
  for (std::size_t i = 0; i < send_count; ++i) out.push_back({sends[i].peer, sends[i].data, sends[i].bytes});
  for (std::size_t i = 0; i < receive_count; ++i) in.push_back({receives[i].peer, receives[i].data, receives[i].bytes});
  return User::call(user, [&](User& self) { self.inner.exchange(out, in, *self.host, Stream{}); });
}

int all_gather(void* user, void* all, std::size_t bytes) {
  return User::call(user, [&](User& self) {
    self.inner.all_gather_host(static_cast<std::byte*>(all) + static_cast<std::size_t>(self.inner.rank()) * bytes, all,
                               bytes);
  });
}

void run_callbacks(int ranks, const CTransport::Body& body) {
  threads::run_ranks(ranks, [&](Communicator& communicator) {
    User user{communicator};
    cpnsa_callbacks callbacks = CPNSA_CALLBACKS_INIT;
    callbacks.user = &user;
    callbacks.exchange = exchange;
    callbacks.all_gather = all_gather;
    callbacks.error_text = [](void* self) { return static_cast<const User*>(self)->text.c_str(); };
    cpnsa_communicator handle = nullptr;
    check_c(cpnsa_communicator_create_callbacks(communicator.rank(), ranks, &callbacks, &handle));
    body(communicator, handle);
    check_c(cpnsa_communicator_destroy(handle));
  });
}

const bool registered = add(c_transports(), CTransport{"threads", rank_counts, run_threads}) &&
                        add(c_transports(), CTransport{"callbacks", rank_counts, run_callbacks});

}  // namespace
}  // namespace cpnsa::test
