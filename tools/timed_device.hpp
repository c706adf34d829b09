#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "cpnsa/device.hpp"
#include "cpnsa/device_memory.hpp"
#include "cpnsa/names.hpp"

namespace cpnsa::tool {

/// The stages of a decoding step; the merges of a sharded cache share one.
enum class DecodeStage { prepare, append, compress, compressed, importance, tokens, merge };
constexpr auto names_of(DecodeStage) {
  return std::to_array<std::string_view>(
      {"prepare", "append", "compress", "compressed", "importance", "tokens", "merge"});
}
inline constexpr std::size_t decode_stage_count = enum_names<DecodeStage>.size();

/// Another device, on which the ops that decode are timed by events while timing is on.
class TimedDevice final : public DeviceImplementation<TimedDevice> {
 public:
  explicit TimedDevice(Device& device) : device_(device) {}

  void start_timing() { timing_ = true, used_ = 0; }
  /// Ends timing; the ops must have finished. Seconds by stage.
  std::array<double, decode_stage_count> stop_timing();

  template <class Op>
  void enqueue(const Op& op, Stream stream) {
    const std::optional<DecodeStage> stage = stage_of(op);
    if (!timing_ || !stage) return device_.run(op, stream);
    if (used_ == spans_.size()) spans_.emplace_back(device_);
    Span& span = spans_[used_++];
    span.stage = *stage;
    device_.record(span.begin.get(), stream);
    device_.run(op, stream);
    device_.record(span.end.get(), stream);
  }

  std::string_view name() const override { return device_.name(); }
  std::string description() const override { return device_.description(); }
  bool host_accessible() const override { return device_.host_accessible(); }
  void check_supported(const Config& config, DType dtype) const override { device_.check_supported(config, dtype); }
  void check_decode_supported(const Config& config, DType dtype, std::int64_t page) const override {
    device_.check_decode_supported(config, dtype, page);
  }
  void check_pointer(const void* pointer, std::size_t bytes, const std::string& name) const override {
    device_.check_pointer(pointer, bytes, name);
  }
  void check_stream(Stream stream) const override { device_.check_stream(stream); }
  void activate() override { device_.activate(); }
  void* allocate(std::size_t bytes) override { return device_.allocate(bytes); }
  void deallocate(void* pointer) noexcept override { device_.deallocate(pointer); }
  void* allocate_host(std::size_t bytes) override { return device_.allocate_host(bytes); }
  void deallocate_host(void* pointer) noexcept override { device_.deallocate_host(pointer); }
  Stream create_stream() override { return device_.create_stream(); }
  void destroy_stream(Stream stream) noexcept override { device_.destroy_stream(stream); }
  void synchronize(Stream stream) override { device_.synchronize(stream); }
  Event create_event() override { return device_.create_event(); }
  void destroy_event(Event event) noexcept override { device_.destroy_event(event); }
  void record(Event event, Stream stream) override { device_.record(event, stream); }
  void wait(Stream stream, Event event) override { device_.wait(stream, event); }
  bool done(Event event) override { return device_.done(event); }
  double seconds_between(Event first, Event second) override { return device_.seconds_between(first, second); }
  void begin_range(const char* name) override { device_.begin_range(name); }
  void end_range() noexcept override { device_.end_range(); }
  void copy(void* destination, const void* source, std::size_t bytes, Stream stream) override {
    device_.copy(destination, source, bytes, stream);
  }
  void fill_zero(void* destination, std::size_t bytes, Stream stream) override {
    device_.fill_zero(destination, bytes, stream);
  }
  std::size_t scratch_bytes(const ProblemSize& size) const override { return device_.scratch_bytes(size); }
  std::size_t decode_scratch_bytes(const DecodeSize& size) const override { return device_.decode_scratch_bytes(size); }
  std::size_t decode_schedule_bytes(const DecodeSize& size) const override {
    return device_.decode_schedule_bytes(size);
  }

 private:
  struct Span {
    explicit Span(Device& device) : begin(device), end(device) {}
    DecodeStage stage = DecodeStage::prepare;
    OwnedEvent begin, end;
  };

  template <class Op>
  static constexpr std::optional<DecodeStage> stage_of(const Op&) {
    return std::nullopt;
  }
  static constexpr std::optional<DecodeStage> stage_of(const PrepareDecode&) { return DecodeStage::prepare; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeAppend&) { return DecodeStage::append; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeCompress&) { return DecodeStage::compress; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeCompressedAttention&) {
    return DecodeStage::compressed;
  }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeSelectBlocks&) { return DecodeStage::importance; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeTokenAttention&) { return DecodeStage::tokens; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeMergeSums&) { return DecodeStage::merge; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeMergeCandidates&) { return DecodeStage::merge; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeWeighParts&) { return DecodeStage::merge; }
  static constexpr std::optional<DecodeStage> stage_of(const DecodeMergeParts&) { return DecodeStage::merge; }

  Device& device_;
  bool timing_ = false;
  std::size_t used_ = 0;
  std::vector<Span> spans_;
};

inline std::array<double, decode_stage_count> TimedDevice::stop_timing() {
  timing_ = false;
  std::array<double, decode_stage_count> seconds{};
  for (std::size_t i = 0; i < used_; ++i)
    seconds[static_cast<std::size_t>(spans_[i].stage)] +=
        device_.seconds_between(spans_[i].begin.get(), spans_[i].end.get());
  return seconds;
}

}  // namespace cpnsa::tool
