#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cpnsa/communicator.hpp"
#include "cpnsa/error.hpp"
#include "src/bindings.hpp"

namespace cpnsa::python {

/// A communicator and the Python object that it stands on (a process group). close() lets go of it here; layers that
/// were made with it keep it.
class SharedCommunicator {
 public:
  SharedCommunicator(std::shared_ptr<Communicator> communicator, nb::object owner)
      : communicator_(std::move(communicator)), owner_(std::move(owner)) {}

  const std::shared_ptr<Communicator>& get() const {
    if (!communicator_) throw ArgumentError("communicator: found one that was closed, expected an open one");
    return communicator_;
  }
  const nb::object& owner() const { return owner_; }
  void close() { communicator_.reset(), owner_.reset(); }

 private:
  std::shared_ptr<Communicator> communicator_;
  nb::object owner_;
};

}  // namespace cpnsa::python
