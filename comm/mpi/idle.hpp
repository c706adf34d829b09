#pragma once

#include <chrono>
#include <thread>

namespace cpnsa::mpi {

/// What a rank does between two looks at MPI: it hands its core to other ranks, of which there may be more than cores,
/// and sleeps when the wait becomes long.
class Idle {
 public:
  void rest() {
    if (++looks_ < yields)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  void reset() { looks_ = 0; }

 private:
  static constexpr int yields = 200;
  int looks_ = 0;
};

}  // namespace cpnsa::mpi
