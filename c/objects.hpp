#pragma once

// The objects that the handles of the interface stand for. An object keeps alive what it was made of.

#include <exception>
#include <memory>

#include "c/handles.hpp"
#include "cpnsa/attention.hpp"
#include "cpnsa/decoder.hpp"

namespace cpnsa::c {

struct CommunicatorObject {
  explicit CommunicatorObject(std::unique_ptr<Communicator> made) : communicator(std::move(made)) {}
  std::unique_ptr<Communicator> communicator;
  Exclusive exclusive{"communicator"};
};

struct SavedObject {
  SavedForward saved;
  Exclusive exclusive{"saved"};
};

struct AttentionObject {
  AttentionObject(std::shared_ptr<Device> device_, std::shared_ptr<CommunicatorObject> communicator_)
      : device(std::move(device_)), communicator(std::move(communicator_)) {}
  std::shared_ptr<Device> device;
  std::shared_ptr<CommunicatorObject> communicator;
  std::unique_ptr<Attention> attention;
  Exclusive exclusive{"attention"};
};

struct DecoderObject {
  DecoderObject(std::shared_ptr<Device> device_, std::shared_ptr<CommunicatorObject> communicator_)
      : device(std::move(device_)), communicator(std::move(communicator_)) {}
  std::shared_ptr<Device> device;
  std::shared_ptr<CommunicatorObject> communicator;
  std::unique_ptr<Decoder> decoder;
  Exclusive exclusive{"decoder"};
};

// Never destroyed: handles may be used, and are told from dead ones, until the process ends.
Table<Device, cpnsa_device>& devices();
Table<CommunicatorObject, cpnsa_communicator>& communicators();
Table<const Partition, cpnsa_partition>& partitions();
Table<AttentionObject, cpnsa_attention>& attentions();
Table<SavedObject, cpnsa_saved>& saved_forwards();
Table<DecoderObject, cpnsa_decoder>& decoders();

/// The result of `prepare`, which converts the arguments of a collective call to the library's types. Only this can
/// fail on one rank alone; `refuse` then tells the ranks that are waiting in the call.
template <class Prepare, class Refuse>
auto prepared_or_refused(const Prepare& prepare, const Refuse& refuse) {
  try {
    return prepare();
  } catch (const std::exception& problem) {
    refuse(problem.what());
    throw;
  }
}

/// Sets *out to the handle of what `make` returns, and to NULL where it throws.
template <class Objects, class Handle, class Make>
void create(Objects& table, Handle* out, const char* name, Make make) {
  not_null(out, name) = nullptr;
  *out = table.add(make());
}

}  // namespace cpnsa::c
