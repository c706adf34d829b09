#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cpnsa/communicator.hpp"
#include "cpnsa/error.hpp"
#include "src/bindings.hpp"

namespace cpnsa::python {

/// A communicator and the Python object that it stands on (a process group), shared by the layers made with it. Once
/// closed, layers refuse to use it, and nothing here keeps the Python object.
class SharedCommunicator {
 public:
  SharedCommunicator(std::shared_ptr<Communicator> communicator, nb::object owner)
      : state_(std::make_shared<State>(State{std::move(communicator), std::move(owner), true})) {}

  /// Throws ArgumentError where it was closed.
  Communicator& get() const {
    if (!state_->open) throw ArgumentError("communicator: found one that was closed, expected an open one");
    return *state_->communicator;
  }
  /// Takes the place of this rank's next layer, which it cannot make because of `problem`: the others learn of it.
  void refuse(const std::string& problem) const;
  void close() {
    state_->open = false;
    state_->owner.reset();
  }

 private:
  struct State {
    std::shared_ptr<Communicator> communicator;
    nb::object owner;
    bool open;
  };
  std::shared_ptr<State> state_;
};

}  // namespace cpnsa::python
