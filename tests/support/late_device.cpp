#include "tests/support/late_device.hpp"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <set>
#include <vector>

namespace cpnsa::test {

/// The work of all late devices: items with the items that they depend on.
class LateWork {
 public:
  using Item = std::size_t;
  static constexpr Item none = 0;

  static std::shared_ptr<LateWork> of_all() {
    static const auto work = std::make_shared<LateWork>();
    return work;
  }

  void add(const void* stream, std::function<void()> run, Item also = none) {
    const std::lock_guard lock(mutex_);
    const Item item = next_++;
    std::vector<Item> before;
    for (const Item one : {last_[stream], also})
      if (items_.contains(one)) before.push_back(one);
    items_.emplace(item, Pending{std::move(run), std::move(before)});
    last_[stream] = item;
  }
  void record(const void* event, const void* stream) {
    const std::lock_guard lock(mutex_);
    recorded_[event] = last_[stream];
  }
  Item recorded(const void* event) {
    const std::lock_guard lock(mutex_);
    return recorded_[event];
  }
  void run_stream(const void* stream) {
    const std::lock_guard lock(mutex_);
    run_up_to(last_[stream]);
  }
  void run_event(const void* event) {
    const std::lock_guard lock(mutex_);
    run_up_to(recorded_[event]);
  }
  void run_all() {
    const std::lock_guard lock(mutex_);
    while (!items_.empty()) run_up_to(items_.rbegin()->first);
  }
  void forget(const void* stream_or_event) {
    const std::lock_guard lock(mutex_);
    last_.erase(stream_or_event);
    recorded_.erase(stream_or_event);
  }

 private:
  struct Pending {
    std::function<void()> run;
    std::vector<Item> before;
  };

  // The item and all that it depends on, in a random order among those that are ready.
  void run_up_to(Item last) {
    std::set<Item> needed;
    std::vector<Item> open{last};
    while (!open.empty()) {
      const Item item = open.back();
      open.pop_back();
      const auto found = items_.find(item);
      if (found == items_.end() || !needed.insert(item).second) continue;
      open.insert(open.end(), found->second.before.begin(), found->second.before.end());
    }
    while (!needed.empty()) {
      std::vector<Item> ready;
      for (const Item item : needed) {
        bool waits = false;
        for (const Item before : items_.at(item).before) waits = waits || needed.contains(before);
        if (!waits) ready.push_back(item);
      }
      const Item item = ready[random_() % ready.size()];
      const auto run = std::move(items_.at(item).run);
      items_.erase(item);
      needed.erase(item);
      run();
    }
  }

  std::mutex mutex_;
  std::mt19937 random_{7};
  Item next_ = 1;
  std::map<Item, Pending> items_;
  std::map<const void*, Item> last_;      // of each stream
  std::map<const void*, Item> recorded_;  // by each event
};

/// A handle of its own for each stream and event. It is a number, not memory: communicators that outlive the device do
/// not destroy their events.
static void* new_handle() {
  static std::atomic<std::uintptr_t> last = 0;
  return reinterpret_cast<void*>(++last);
}

LateDevice::LateDevice() : work_(LateWork::of_all()) {}
LateDevice::~LateDevice() {
  work_->run_all();
  work_->forget(this);
}

// Memory is freed only when nothing reads it any more, as cudaFree() does.
void LateDevice::deallocate(void* pointer) noexcept {
  work_->run_all();
  inner_.deallocate(pointer);
}
void LateDevice::deallocate_host(void* pointer) noexcept {
  work_->run_all();
  inner_.deallocate_host(pointer);
}

Stream LateDevice::create_stream() {
  return {new_handle()};
}
void LateDevice::destroy_stream(Stream stream) noexcept {
  work_->run_all();
  work_->forget(stream.handle);
}
void LateDevice::synchronize(Stream stream) {
  work_->run_stream(stream_of(stream));
}
Event LateDevice::create_event() {
  return {new_handle()};
}
void LateDevice::destroy_event(Event event) noexcept {
  work_->forget(event.handle);
}
void LateDevice::record(Event event, Stream stream) {
  work_->record(event.handle, stream_of(stream));
}
void LateDevice::wait(Stream stream, Event event) {
  work_->add(
      stream_of(stream), [] {}, work_->recorded(event.handle));
}
bool LateDevice::done(Event event) {  // the host asks because it waits
  work_->run_event(event.handle);
  return true;
}

void LateDevice::copy(void* destination, const void* source, std::size_t bytes, Stream stream) {
  work_->add(stream_of(stream), [=] { std::memcpy(destination, source, bytes); });
}
void LateDevice::fill_zero(void* destination, std::size_t bytes, Stream stream) {
  work_->add(stream_of(stream), [=] { std::memset(destination, 0, bytes); });
}

// Arguments are copied, with those that they point to on the host's stack: a kernel launch copies them too.
template <class Op>
void LateDevice::enqueue(const Op& op, Stream stream) {
  if constexpr (std::is_same_v<Op, Convert>) {
    const std::vector<Conversion> arrays(op.arrays.begin(), op.arrays.end());
    work_->add(stream_of(stream), [this, to = op.to, from = op.from, arrays] {
      inner_.run(Convert{to, from, arrays}, Stream{});
    });
  } else {
    work_->add(stream_of(stream), [this, op] { inner_.run(op, Stream{}); });
  }
}

}  // namespace cpnsa::test
