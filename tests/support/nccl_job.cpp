#include "tests/support/nccl_job.hpp"

#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace cpnsa::test {
namespace {

constexpr int max_ids = 10'000, max_votes = 100'000;
constexpr std::chrono::minutes patience{2};
constexpr int no_gpu_status = 77;

// Lives in memory that the processes share.
struct Shared {
  std::atomic<int> made{0};
  ncclUniqueId ids[max_ids];
  std::atomic<int> votes[max_votes];
  std::atomic<int> objections[max_votes];
};

Shared* shared = nullptr;
int own_rank = 0, ranks_of_job = 1, ids_taken = 0, votes_held = 0;

// NCCL refuses two ranks on one GPU unless they appear to be on different hosts.
void choose_gpu() {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) _exit(no_gpu_status);
  if (cudaSetDevice(own_rank % gpus) != cudaSuccess) _exit(1);
  if (gpus >= ranks_of_job) return;
  ::setenv("NCCL_HOSTID", std::to_string(own_rank).c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  for (const char* variable : {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"}) ::setenv(variable, "1", 1);
  ::setenv("NCCL_NVLS_ENABLE", "0", 1);
}

// Waits until `done` is true or the time is over; returns `done`.
bool wait_until(const std::function<bool()>& done) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

// If a rank dies, kills the others, which would wait for it.
[[noreturn]] void wait_for(const std::vector<pid_t>& children) {
  int worst = 0;
  for (std::size_t left = children.size(); left > 0; --left) {
    int status = 0;
    ::waitpid(-1, &status, 0);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (WIFSIGNALED(status) && worst == 0)
      for (const pid_t child : children) ::kill(child, SIGKILL);
    if (worst == 0) worst = code;
  }
  _exit(worst);
}

}  // namespace

void NcclJob::start(int ranks) {
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("cannot share memory");
  shared = new (memory) Shared;
  ranks_of_job = ranks;
  std::vector<pid_t> children;
  for (own_rank = 0; own_rank < ranks; ++own_rank) {
    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("cannot start a process");
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      return choose_gpu();
    }
    children.push_back(child);
  }
  wait_for(children);
}

int NcclJob::rank() {
  return own_rank;
}

int NcclJob::size() {
  return ranks_of_job;
}

ncclUniqueId NcclJob::next_id() {
  const int index = ids_taken++;
  if (index >= max_ids) throw std::runtime_error("too many communicators");
  if (own_rank == 0) {
    if (ncclGetUniqueId(&shared->ids[index]) != ncclSuccess) throw std::runtime_error("ncclGetUniqueId failed");
    shared->made.store(index + 1, std::memory_order_release);
  }
  if (!wait_until([&] { return shared->made.load(std::memory_order_acquire) > index; }))
    throw std::runtime_error("rank 0 makes no id");
  return shared->ids[index];
}

bool NcclJob::all(bool good) {
  const int index = votes_held++;
  if (index >= max_votes) throw std::runtime_error("too many votes");
  if (!good) ++shared->objections[index];
  ++shared->votes[index];
  return wait_until([&] { return shared->votes[index] == ranks_of_job; }) && shared->objections[index] == 0;
}

}  // namespace cpnsa::test
