#include "tests/emulation/thread_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/context/fixedsize_stack.hpp>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <thread>

namespace emulation {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024;

alignas(1024) thread_local unsigned char shared_memory[shared_capacity + 1024];
thread_local ThreadBlock* current_block = nullptr;

// Stacks are used again: a grid has many blocks.
class StackPool {
 public:
  boost::context::stack_context allocate() {
    if (free_.empty()) return boost::context::fixedsize_stack(stack_bytes).allocate();
    const boost::context::stack_context stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { free_.push_back(stack); }
  ~StackPool() {
    for (boost::context::stack_context& stack : free_) boost::context::fixedsize_stack(stack_bytes).deallocate(stack);
  }

 private:
  std::vector<boost::context::stack_context> free_;
};
thread_local StackPool stacks;

struct PooledStack {
  boost::context::stack_context allocate() { return stacks.allocate(); }
  void deallocate(boost::context::stack_context& stack) { stacks.deallocate(stack); }
};

}  // namespace

ThreadBlock::ThreadBlock(dim3 grid_, dim3 threads, std::size_t shared_bytes)
    : grid(grid_),
      size(threads),
      threads_(threads.x * threads.y * threads.z),
      warps_((threads_.size() + warp_threads - 1) / warp_threads),
      barriers_(shared_bytes > 0 ? shared_bytes / 8 + 130 : 0),
      shared_bytes_(shared_bytes) {
  if (shared_bytes > shared_capacity) throw std::runtime_error("emulation: more shared memory than a block can have");
}

ThreadBlock& ThreadBlock::current() {
  return *current_block;
}

void ThreadBlock::prepare(uint3 index_) {
  index = index_;
  if (shared_bytes_ > 0) {
    std::memset(shared_memory, 0xff, std::min(sizeof shared_memory, shared_bytes_ + 1024));  // NaN of any width
    std::fill(barriers_.begin(), barriers_.end(), MemoryBarrier{});
  }
  named_.fill({});
  warpgroups_.fill({});
  random_.seed(index.x + 1);
  live_ = static_cast<int>(threads_.size());
  started_ = 0;
  std::fill(warps_.begin(), warps_.end(), Warp{});
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.number = static_cast<int>(i);
    thread.done = false;
    thread.sleeps = false;
    thread.counter = nullptr;
    const auto n = static_cast<unsigned>(i);
    thread.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    warps_[i / warp_threads].live |= 1u << thread.lane();
  }
  choose_laggard();
}

void ThreadBlock::choose_laggard() {
  if (grid.x * grid.y * grid.z == 1) return;
  // Goes on from launch to launch: of a small grid the first block does it all.
  static thread_local std::minstd_rand draw;
  do {
    laggard_ = static_cast<int>(draw() / 64 % warps_.size());
  } while (live_ > 0 && warps_[static_cast<std::size_t>(laggard_)].live == 0);
  copies_before_laggard_ = draw() / 64 % 2 == 0;
}

// Begins one thread after another until one must wait, which keeps the fiber.
boost::context::fiber ThreadBlock::carrier(const std::function<void()>& kernel) {
  return {std::allocator_arg, PooledStack{}, [this, &kernel](boost::context::fiber&& scheduler) {
            scheduler_ = std::move(scheduler);
            try {
              while (started_ < threads_.size() && !error_) {
                running_ = &threads_[started_++];
                kernel();
                leave(*running_);
              }
            } catch (const boost::context::detail::forced_unwind&) {
              throw;
            } catch (...) {
              error_ = std::current_exception();
            }
            return std::move(scheduler_);
          }};
}

// Returns when a thread waits, which is then the one that runs, or when the fiber has no more to do.
void ThreadBlock::go_on(boost::context::fiber fiber) {
  boost::context::fiber suspended = std::move(fiber).resume();
  if (suspended) running_->fiber = std::move(suspended);
}

void ThreadBlock::suspend() {
  Thread& own = *running_;
  progress_ |= !own.sleeps;
  scheduler_ = std::move(scheduler_).resume();
  running_ = &own;
}

// Each thread that can go on does, of the warp that lags or of the others. False if none could.
bool ThreadBlock::go_round(bool laggard) {
  bool ran = false;
  for (std::size_t i = 0; i < threads_.size() && !error_; ++i) {
    Thread& thread = threads_[i];
    if (thread.done || thread.sleeps || (thread.number / warp_threads == laggard_) != laggard) continue;
    if (thread.counter && *thread.counter == thread.seen) continue;
    thread.counter = nullptr;
    go_on(std::move(thread.fiber));
    ran = true;
  }
  if (laggard && ran) choose_laggard();
  return ran;
}

void ThreadBlock::run(uint3 index_, const std::function<void()>& kernel) {
  prepare(index_);
  current_block = this;
  while (started_ < threads_.size() && !error_) go_on(carrier(kernel));

  auto asleep_since = std::chrono::steady_clock::now();
  while (live_ > 0 && !error_) {
    if (go_round(false) || (copies_before_laggard_ && land_a_copy()) || go_round(true) || land_a_copy() || error_) {
      if (std::exchange(progress_, false)) asleep_since = std::chrono::steady_clock::now();
      continue;
    }
    const bool sleeps = std::any_of(threads_.begin(), threads_.end(), [](const Thread& t) { return t.sleeps; });
    if (!sleeps || std::chrono::steady_clock::now() - asleep_since > max_sleep)
      error_ =
          std::make_exception_ptr(std::runtime_error("emulation: a thread block cannot go on: " + where_everyone_is()));
    for (Thread& thread : threads_) thread.sleeps = false;
    std::this_thread::yield();
  }
  if (!error_ && !copies_.empty())
    error_ = std::make_exception_ptr(std::runtime_error("emulation: a thread block ended before its copies"));
  copies_.clear();
  const std::exception_ptr error = std::exchange(error_, nullptr);
  if (error)
    for (Thread& thread : threads_) thread = Thread{};  // unwinds what has not ended
  current_block = nullptr;
  if (error) std::rethrow_exception(error);
}

void ThreadBlock::leave(Thread& thread) {
  if (thread.copies.has_any()) fail("the thread ends before its copies");
  if (thread.products.has_any()) fail("the thread ends before its products");
  thread.copies = {};
  thread.products = {};
  thread.done = true;
  progress_ = true;
  --live_;
  Warp& warp = warps_[static_cast<std::size_t>(thread.number / warp_threads)];
  warp.live &= ~(1u << thread.lane());
  if (warp.live == 0 && thread.number / warp_threads == laggard_) choose_laggard();
  if (warp.arrived != 0 && (warp.live & ~warp.arrived) == 0) {
    if (warp.verb != "__syncwarp") fail("a lane ends while others wait for it in " + std::string(warp.verb));
    warp.arrived = 0;
    ++warp.meetings;
  }
  NamedBarrier& all = named_[0];
  if (all.arrived > 0 && all.arrived == live_) {
    all.arrived = 0;
    ++all.meetings;
  }
}

void ThreadBlock::wait_while(const std::uint64_t& counter, std::string_view verb) {
  Thread& thread = *running_;
  thread.counter = &counter;
  thread.seen = counter;
  thread.verb = verb;
  suspend();
}

void ThreadBlock::sleep() {
  Thread& thread = *running_;
  thread.sleeps = true;
  thread.verb = "__nanosleep";
  suspend();
}

Warp& ThreadBlock::arrive(std::string_view verb, unsigned mask, void* argument) {
  Thread& thread = *running_;
  Warp& warp = warps_[static_cast<std::size_t>(thread.number / warp_threads)];
  if (mask != 0xffffffffu) fail(fmt::format("{} of a part of a warp, {:#x}", verb, mask));
  if (warp.arrived != 0 && warp.verb != verb)
    fail(fmt::format("the lanes of a warp part: one is at {}, others at {}", verb, warp.verb));
  warp.verb = verb;
  warp.arrived |= 1u << thread.lane();
  warp.arguments[static_cast<std::size_t>(thread.lane())] = argument;
  return warp;
}

void ThreadBlock::meet(int barrier, int threads, std::string_view verb) {
  meet(named_.at(static_cast<std::size_t>(barrier)), threads, verb);
}

void ThreadBlock::meet_warpgroup(std::string_view verb) {
  meet(warpgroups_.at(static_cast<std::size_t>(running_->number / warpgroup_threads)), warpgroup_threads, verb);
}

void ThreadBlock::meet(NamedBarrier& barrier, int threads, std::string_view verb) {
  if (++barrier.arrived > threads) fail(fmt::format("{} of more threads than {}", verb, threads));
  if (barrier.arrived < threads) return wait_while(barrier.meetings, verb);
  barrier.arrived = 0;
  ++barrier.meetings;
}

unsigned char* ThreadBlock::shared() {
  return shared_memory;
}

std::uint32_t ThreadBlock::address_of(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(pointer) - shared_memory);
}

unsigned char* ThreadBlock::pointer_to(std::uint32_t address) {
  return shared_memory + static_cast<std::int32_t>(address);
}

MemoryBarrier& ThreadBlock::barrier(std::uint32_t address) {
  if (address % 8 != 0 || address / 8 >= barriers_.size()) fail(fmt::format("no mbarrier can be at {:#x}", address));
  return barriers_[address / 8];
}

void ThreadBlock::settle(MemoryBarrier& barrier) {
  if (barrier.arrivals == 0) fail("an mbarrier that was not initialised");
  if (barrier.missing < 0) fail("more arrivals at an mbarrier than its phase has");
  if (barrier.missing == 0 && barrier.bytes == 0) {
    barrier.missing = barrier.arrivals;
    ++barrier.phase;
  }
}

bool ThreadBlock::land_a_copy() {
  if (copies_.empty()) return false;
  std::swap(copies_[random_() % copies_.size()], copies_.back());
  const Copy copy = std::move(copies_.back());
  copies_.pop_back();
  try {
    copy();
  } catch (...) {
    error_ = std::current_exception();
  }
  return true;
}

void ThreadBlock::fail(const std::string& what) const {
  throw std::runtime_error(
      fmt::format("emulation: block {}, thread {}: {}", index.x, running_ ? running_->number : 0, what));
}

std::string ThreadBlock::where_everyone_is() const {
  std::map<std::pair<int, std::string_view>, int> counts;  // by warp and verb
  for (const Thread& thread : threads_)
    if (!thread.done) ++counts[{thread.number / warp_threads, thread.verb}];
  std::string text = fmt::format("block {}", index.x);
  for (const auto& [at, count] : counts) text += fmt::format("; warp {}: {} in {}", at.first, count, at.second);
  return text;
}

void run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  std::vector<unsigned> order(blocks.x * blocks.y * blocks.z);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::minstd_rand(static_cast<unsigned>(order.size())));
  ThreadBlock block(blocks, threads, shared_bytes);
  for (const unsigned number : order)
    block.run({number % blocks.x, number / blocks.x % blocks.y, number / blocks.x / blocks.y}, kernel);
}

}  // namespace emulation
