// The owners of a device's resources give back what they took, once, and nothing of a device that is gone.

#include "cpnsa/device_memory.hpp"

#include <gmock/gmock.h>

#include <memory>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>

#include "cpnsa/error.hpp"
#include "kernels/cpu/device.hpp"

namespace cpnsa::test {
namespace {

/// What is held of a device, by kind; every resource must be given back to where it came from.
struct Held {
  std::set<void*> memory, pinned, streams, events;
  int streams_made = 0;

  bool none() const { return memory.empty() && pinned.empty() && streams.empty() && events.empty(); }
};

class CountingDevice final : public cpu::CpuDevice {
 public:
  explicit CountingDevice(Held& held) : held_(held) {}

  void* allocate(std::size_t bytes) override { return *held_.memory.insert(CpuDevice::allocate(bytes)).first; }
  void deallocate(void* pointer) noexcept override {
    EXPECT_EQ(held_.memory.erase(pointer), 1u);
    CpuDevice::deallocate(pointer);
  }
  void* allocate_host(std::size_t bytes) override {
    if (bytes > 1000) throw DeviceError("no pinned memory left");
    return *held_.pinned.insert(CpuDevice::allocate(bytes)).first;
  }
  void deallocate_host(void* pointer) noexcept override {
    EXPECT_EQ(held_.pinned.erase(pointer), 1u);
    CpuDevice::deallocate(pointer);
  }
  Stream create_stream() override {
    const auto number = static_cast<std::uintptr_t>(++held_.streams_made);
    return {*held_.streams.insert(reinterpret_cast<void*>(number)).first};
  }
  void destroy_stream(Stream stream) noexcept override { EXPECT_EQ(held_.streams.erase(stream.handle), 1u); }
  Event create_event() override {
    const Event event = CpuDevice::create_event();
    held_.events.insert(event.handle);
    return event;
  }
  void destroy_event(Event event) noexcept override {
    EXPECT_EQ(held_.events.erase(event.handle), 1u);
    CpuDevice::destroy_event(event);
  }

 private:
  Held& held_;
};

template <class Owner>
Owner made(Device& device) {
  if constexpr (std::is_constructible_v<Owner, Device&, std::size_t>)
    return Owner(device, 100);
  else
    return Owner(device);
}

template <class Owner>
class Owners : public testing::Test {};
using OwnerTypes = testing::Types<DeviceBuffer, PinnedBuffer, OwnedStream, OwnedEvent>;
TYPED_TEST_SUITE(Owners, OwnerTypes);

TYPED_TEST(Owners, GiveBackWhatTheyTookOnce) {
  static_assert(!std::is_copy_constructible_v<TypeParam> && !std::is_copy_assignable_v<TypeParam>);
  static_assert(std::is_nothrow_move_constructible_v<TypeParam> && std::is_nothrow_move_assignable_v<TypeParam>);
  Held held;
  CountingDevice device(held);
  {
    const TypeParam owner = made<TypeParam>(device);
    EXPECT_TRUE(owner);
    EXPECT_FALSE(held.none());
  }
  EXPECT_TRUE(held.none());
  {
    const TypeParam nothing;
    EXPECT_FALSE(nothing);
  }
  EXPECT_TRUE(held.none());
}

TYPED_TEST(Owners, Move) {
  Held held, other_held;
  CountingDevice device(held), other_device(other_held);
  TypeParam owner = made<TypeParam>(device);
  EXPECT_TRUE(owner.belongs_to(device));
  EXPECT_FALSE(owner.belongs_to(other_device));

  TypeParam moved(std::move(owner));
  EXPECT_TRUE(moved.belongs_to(device));
  EXPECT_FALSE(owner);  // NOLINT(bugprone-use-after-move): empty, as promised
  EXPECT_FALSE(owner.belongs_to(device));

  moved = made<TypeParam>(other_device);  // gives back what it had
  EXPECT_TRUE(held.none());
  EXPECT_TRUE(moved.belongs_to(other_device));
  moved = TypeParam();
  EXPECT_TRUE(other_held.none());
}

TYPED_TEST(Owners, OfADeviceThatIsGoneGiveNothingBack) {
  Held held;
  std::optional<CountingDevice> device(held);
  std::optional<TypeParam> owner(made<TypeParam>(*device));
  const Held before = held;
  device.reset();
  std::optional<CountingDevice> next(held);  // at the same address
  EXPECT_FALSE(owner->belongs_to(*next));
  owner.reset();
  EXPECT_EQ(held.memory, before.memory);
  EXPECT_EQ(held.pinned, before.pinned);
  EXPECT_EQ(held.streams, before.streams);
  EXPECT_EQ(held.events, before.events);

  cpu::CpuDevice last;  // the process's memory outlives a CPU device: freed here for those who look for leaks
  for (void* memory : held.memory) last.deallocate(memory);
  for (void* memory : held.pinned) last.deallocate(memory);
  for (void* event : held.events) last.destroy_event({event});
}

template <class Buffer>
class Buffers : public testing::Test {};
using BufferTypes = testing::Types<DeviceBuffer, PinnedBuffer>;
TYPED_TEST_SUITE(Buffers, BufferTypes);

TYPED_TEST(Buffers, HaveDataAndSize) {
  Held held;
  CountingDevice device(held);
  TypeParam buffer(device, 100);
  ASSERT_NE(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size(), 100u);
  TypeParam moved(std::move(buffer));
  EXPECT_NE(moved.data(), nullptr);
  EXPECT_EQ(moved.size(), 100u);
  EXPECT_EQ(buffer.data(), nullptr);  // NOLINT(bugprone-use-after-move): empty, as promised
  EXPECT_EQ(buffer.size(), 0u);
}

TYPED_TEST(Buffers, OfNoBytesAllocateNothing) {
  Held held;
  CountingDevice device(held);
  const TypeParam buffer(device, 0);
  EXPECT_TRUE(held.none());
  EXPECT_FALSE(buffer);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size(), 0u);
}

TEST(DeviceBuffers, ReleaseEndsTheOwnership) {
  Held held;
  CountingDevice device(held);
  void* memory = nullptr;
  {
    DeviceBuffer buffer(device, 100);
    memory = buffer.release();
    EXPECT_EQ(buffer.data(), nullptr);
    EXPECT_EQ(buffer.size(), 0u);
  }
  EXPECT_EQ(held.memory.count(memory), 1u);
  device.deallocate(memory);
  EXPECT_TRUE(held.none());
}

TEST(PinnedBuffers, SayWhenThereIsNoMemory) {
  Held held;
  CountingDevice device(held);
  EXPECT_THROW(PinnedBuffer(device, 1001), DeviceError);
  EXPECT_TRUE(held.none());
}

}  // namespace
}  // namespace cpnsa::test
