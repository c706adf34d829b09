#include "cpnsa/device.hpp"

#include <fmt/format.h>

#include "cpnsa/error.hpp"

namespace cpnsa {

SegmentSchedule::SegmentSchedule(std::span<const Segment> list) : segments(list.begin(), list.end()) {
  for (const Segment& segment : segments) rows += segment.rows;
}

void Device::check_decode_supported(const Config&, DType, std::int64_t) const {
  throw UnsupportedError(
      fmt::format("{} device: found a request to decode, supported are forward and backward", name()));
}

std::unique_ptr<SegmentSchedule> Device::schedule(std::span<const Segment> segments, const Config&) {
  return std::make_unique<SegmentSchedule>(segments);
}

}  // namespace cpnsa
