#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "c/boundary.hpp"

namespace cpnsa::c {

/// A number that the process has never used for a handle.
std::uintptr_t new_handle();

/// The living objects of one kind. A handle is a number that no other object of the process ever had or will have, so
/// that it can be told from those of objects that are gone.
template <class Object, class Handle>
class Table {
 public:
  explicit Table(const char* kind) : kind_(kind) {}

  Handle add(std::shared_ptr<Object> object) {
    const std::lock_guard lock(mutex_);
    const std::uintptr_t name = new_handle();
    objects_.emplace(name, std::move(object));
    return reinterpret_cast<Handle>(name);
  }

  /// Throws HandleError for a handle that is none. The object lives on while the caller holds it.
  std::shared_ptr<Object> find(Handle handle) {
    const std::lock_guard lock(mutex_);
    return at(handle)->second;
  }

  /// Throws HandleError; takes NULL, for which there is nothing.
  std::shared_ptr<Object> remove(Handle handle) {
    if (!handle) return nullptr;
    const std::lock_guard lock(mutex_);
    const auto entry = at(handle);
    std::shared_ptr<Object> object = std::move(entry->second);
    objects_.erase(entry);
    return object;
  }

 private:
  auto at(Handle handle) {
    const auto entry = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
    if (entry != objects_.end()) return entry;
    const std::string found = handle ? "one that was destroyed or is of no such object" : "NULL";
    throw HandleError(std::string(kind_) + ": found " + found + ", expected a handle of a living " + kind_);
  }

  const char* kind_;
  std::mutex mutex_;
  std::map<std::uintptr_t, std::shared_ptr<Object>> objects_;
};

/// Something that one thread may use at a time.
class Exclusive {
 public:
  explicit Exclusive(const char* kind) : kind_(kind) {}

 private:
  friend class InUse;
  const char* kind_;
  std::atomic_flag used_ = ATOMIC_FLAG_INIT;
};

/// Uses it from construction to destruction; throws ArgumentError while another thread does.
class InUse {
 public:
  explicit InUse(Exclusive& exclusive) : exclusive_(exclusive) {
    if (exclusive.used_.test_and_set(std::memory_order_acquire))
      throw ArgumentError(std::string(exclusive.kind_) + ": found it in use by another call, expected one at a time");
  }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
  ~InUse() { exclusive_.used_.clear(std::memory_order_release); }

 private:
  Exclusive& exclusive_;
};

}  // namespace cpnsa::c
