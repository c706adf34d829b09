#pragma once

// A thread block of a CUDA kernel on a CPU: every thread a fiber, in the order that the kernel's own barriers allow.
// What the hardware does in its own time happens as late as the kernel permits: copies land when no thread can go on,
// products are computed when they are waited for, and the memory that a copy will fill holds NaN until then. So what a
// kernel forgets to wait for, or frees too early, becomes a wrong result; what it waits for in vain is an error that
// says where each thread stands. In grids of several blocks one warp lags: it goes on when nobody else can, and every
// second one when no copy is left to land either; then another lags. So what a kernel lets a warp do before the others
// have come there happens.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <boost/context/fiber.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

namespace emulation {

inline constexpr int warp_threads = 32, warpgroup_threads = 128;
inline constexpr std::size_t shared_capacity = 227 * 1024;

/// A copy under way: `land` does it.
using Copy = std::function<void()>;

/// A product of a warpgroup under way, as one thread enqueued it.
struct Product {
  float* sums;
  int columns;
  std::array<std::uint32_t, 4> rows;  ///< the thread's registers of the first operand, if it is not in shared memory
  std::uint64_t first;                ///< its descriptor, if it is
  std::uint64_t second;
  bool first_in_registers;
  bool accumulate;
  const float* values;  ///< of the 65536 numbers of the operands' type
};

/// What a thread has begun: groups that it committed, oldest first, and what is in none yet.
template <class Item>
struct Groups {
  std::vector<std::vector<Item>> committed;
  std::vector<Item> open;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  bool has_any() const {
    return !open.empty() ||
           std::any_of(committed.begin(), committed.end(), [](const auto& group) { return !group.empty(); });
  }
};

struct Thread {
  uint3 index{};
  int number = 0;  ///< in the block
  bool done = false;
  std::string_view verb;                   ///< what it waits in
  const std::uint64_t* counter = nullptr;  ///< it goes on when this is no longer `seen`
  std::uint64_t seen = 0;
  bool sleeps = false;          ///< until other thread blocks have got on
  boost::context::fiber fiber;  ///< that it waits on
  Groups<Copy> copies;          ///< cp.async
  Groups<Product> products;

  int lane() const { return number % warp_threads; }
};

/// The lanes of a warp meet: the last to come acts for all.
struct Warp {
  std::uint64_t meetings = 0;
  std::string_view verb;
  unsigned live = 0;
  unsigned arrived = 0;
  std::array<void*, warp_threads> arguments{};
};

struct NamedBarrier {
  std::uint64_t meetings = 0;
  int arrived = 0;
};

/// An mbarrier in shared memory.
struct MemoryBarrier {
  int arrivals = 0;  ///< of a phase; 0: not initialised
  int missing = 0;
  std::int64_t bytes = 0;
  std::uint64_t phase = 0;
};

class ThreadBlock {
 public:
  ThreadBlock(dim3 grid, dim3 threads, std::size_t shared_bytes);

  /// Runs the block `index` of the grid to its end. Throws what the kernel throws, and std::runtime_error when it
  /// cannot end.
  void run(uint3 index, const std::function<void()>& kernel);

  /// The block and the thread that run on this thread of the host.
  static ThreadBlock& current();
  Thread& thread() { return *running_; }

  dim3 grid, size;
  uint3 index{};

  // --- waiting ------------------------------------------------------------------------------------------------------

  void wait_while(const std::uint64_t& counter, std::string_view verb);
  void sleep();

  /// `act` gets every lane's `argument`, by lane, once all lanes are here.
  template <class Argument, class Act>
  void meet_warp(std::string_view verb, unsigned mask, Argument& argument, Act&& act) {
    Warp& warp = arrive(verb, mask, &argument);
    if ((warp.live & ~warp.arrived) != 0) return wait_while(warp.meetings, verb);
    std::array<Argument*, warp_threads> arguments{};
    for (int lane = 0; lane < warp_threads; ++lane)
      if (warp.live >> lane & 1)
        arguments[static_cast<std::size_t>(lane)] =
            static_cast<Argument*>(warp.arguments[static_cast<std::size_t>(lane)]);
    act(arguments);
    warp.arrived = 0;
    ++warp.meetings;
  }

  void meet(int barrier, int threads, std::string_view verb);
  /// What a warpgroup's instructions do by themselves: no warp passes before all four are there.
  void meet_warpgroup(std::string_view verb);
  int live_threads() const { return live_; }

  // --- shared memory ------------------------------------------------------------------------------------------------

  static unsigned char* shared();
  static std::uint32_t address_of(const void* pointer);
  static unsigned char* pointer_to(std::uint32_t address);
  MemoryBarrier& barrier(std::uint32_t address);
  void settle(MemoryBarrier& barrier);
  void start_copy(Copy copy) { copies_.push_back(std::move(copy)); }

  [[noreturn]] void fail(const std::string& what) const;

  /// How long threads may do nothing but look, in case other thread blocks get on.
  static inline std::chrono::milliseconds max_sleep{60'000};

 private:
  Warp& arrive(std::string_view verb, unsigned mask, void* argument);
  void meet(NamedBarrier& barrier, int threads, std::string_view verb);
  void prepare(uint3 index);
  boost::context::fiber carrier(const std::function<void()>& kernel);
  void go_on(boost::context::fiber fiber);
  bool go_round(bool laggard);
  void choose_laggard();
  void suspend();
  void leave(Thread& thread);
  bool land_a_copy();
  std::string where_everyone_is() const;

  std::vector<Thread> threads_;
  std::size_t started_ = 0;  ///< threads
  boost::context::fiber scheduler_;
  std::vector<Warp> warps_;
  std::array<NamedBarrier, 16> named_{};
  std::array<NamedBarrier, 8> warpgroups_{};
  std::vector<MemoryBarrier> barriers_;
  std::vector<Copy> copies_;
  std::size_t shared_bytes_;
  std::minstd_rand random_;
  int laggard_ = -1;  ///< warp
  bool copies_before_laggard_ = false;
  int live_ = 0;
  bool progress_ = false;  ///< a thread did more than look whether it may go on, and sleep again
  Thread* running_ = nullptr;
  std::exception_ptr error_;
};

/// kernel<<<blocks, threads, shared, stream>>>(arguments...) is spelt kernel ->* Grid{...}(arguments...). Blocks run
/// one after another, in an order drawn at random, on the thread of the host that launches.
void run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes, const std::function<void()>& kernel);

template <class... Arguments>
struct Call {
  dim3 blocks, threads;
  std::size_t shared_bytes;
  std::tuple<Arguments...> arguments;
};

struct Grid {
  dim3 blocks, threads;
  std::size_t shared_bytes;

  template <class Blocks, class Threads, class Bytes>
  Grid(Blocks b, Threads t, Bytes bytes, cudaStream_t)
      : blocks(dimensions(b)), threads(dimensions(t)), shared_bytes(static_cast<std::size_t>(bytes)) {}

  template <class... Arguments>
  Call<Arguments...> operator()(const Arguments&... arguments) const {
    return {blocks, threads, shared_bytes, {arguments...}};
  }

 private:
  static dim3 dimensions(dim3 given) { return given; }
  template <class Number>
  requires std::is_integral_v<Number>
  static dim3 dimensions(Number given) { return dim3(static_cast<unsigned>(given)); }
};

template <class... Parameters, class... Arguments>
void operator->*(void (*kernel)(Parameters...), const Call<Arguments...>& call) {
  std::apply(
      [&](const Arguments&... arguments) {
        run_grid(call.blocks, call.threads, call.shared_bytes, [&] { kernel(arguments...); });
      },
      call.arguments);
}

/// cudaLaunchKernelEx(launch, kernel, arguments...).
template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t* launch, void (*kernel)(Parameters...),
                          const Arguments&... arguments) {
  run_grid(launch->gridDim, launch->blockDim, launch->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace emulation
