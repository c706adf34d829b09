#include "cpnsa/device.hpp"

namespace cpnsa {

SegmentSchedule::SegmentSchedule(std::span<const Segment> list) : segments(list.begin(), list.end()) {
  for (const Segment& segment : segments) rows += segment.rows;
}

std::unique_ptr<SegmentSchedule> Device::schedule(std::span<const Segment> segments, const Config&) {
  return std::make_unique<SegmentSchedule>(segments);
}

}  // namespace cpnsa
