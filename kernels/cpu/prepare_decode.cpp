#include <new>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {

template <>
void run_op(const PrepareDecode& a) {
  auto* const schedule = new (a.schedule) DecodeSchedule{0};
  for (std::int64_t b = 0; b < a.sequences; ++b) {
    const std::int64_t slot = a.slots ? a.slots[b] : b;
    const std::int64_t row = a.cu_q[b], rows = a.cu_q[b + 1] - row;
    if (slot < 0 || slot >= a.num_slots || rows <= 0 || row < 0 || row + rows > a.tokens) continue;
    const std::int64_t position = a.lengths[slot];
    if (position < 0 || position + rows > a.max_length) continue;
    new (schedule->items() + schedule->count++) DecodeSequence{slot, row, rows, position};
  }
}

}  // namespace cpnsa::cpu
