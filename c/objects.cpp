#include "c/objects.hpp"

namespace cpnsa::c {

std::uintptr_t new_handle() {
  static std::atomic<std::uintptr_t> last{0};
  return ++last;
}

Table<Device, cpnsa_device>& devices() {
  static auto* table = new Table<Device, cpnsa_device>("device");
  return *table;
}

Table<CommunicatorObject, cpnsa_communicator>& communicators() {
  static auto* table = new Table<CommunicatorObject, cpnsa_communicator>("communicator");
  return *table;
}

Table<const Partition, cpnsa_partition>& partitions() {
  static auto* table = new Table<const Partition, cpnsa_partition>("partition");
  return *table;
}

Table<AttentionObject, cpnsa_attention>& attentions() {
  static auto* table = new Table<AttentionObject, cpnsa_attention>("attention");
  return *table;
}

Table<SavedObject, cpnsa_saved>& saved_forwards() {
  static auto* table = new Table<SavedObject, cpnsa_saved>("saved");
  return *table;
}

Table<DecoderObject, cpnsa_decoder>& decoders() {
  static auto* table = new Table<DecoderObject, cpnsa_decoder>("decoder");
  return *table;
}

}  // namespace cpnsa::c
