#pragma once

#include <chrono>
#include <thread>

namespace cpnsa::comm {

/// What a rank does between two looks at what it waits for: it hands its core to other ranks, of which there may be
/// more than cores, and sleeps when the wait becomes long.
class Idle {
 public:
  explicit Idle(int yields = 200) : yields_(yields) {}

  void rest() {
    if (++looks_ < yields_)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  void reset() { looks_ = 0; }

 private:
  int yields_;
  int looks_ = 0;
};

}  // namespace cpnsa::comm
