#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cpnsa/communicator.hpp"
#include "cpnsa/error.hpp"
#include "src/bindings.hpp"
#include "src/signals.hpp"

namespace cpnsa::python {

/// A KeyboardInterrupt, SystemExit or other exception that is no Exception, raised by a Python callback of a
/// communicator. It waits here while C++ code unwinds, and is raised again at the boundary to Python. Used under the
/// interpreter's lock.
struct Interrupt {
  nb::object exception;
};

/// A communicator and the Python object that it stands on (a process group), shared by the layers made with it. Once
/// closed, layers refuse to use it, and nothing here keeps the Python object.
class SharedCommunicator {
 public:
  SharedCommunicator(std::shared_ptr<Communicator> communicator, nb::object owner,
                     std::shared_ptr<Interrupt> interrupt = nullptr)
      : state_(std::make_shared<State>(State{std::move(communicator), std::move(owner), std::move(interrupt), true})) {}

  /// Runs a call of the library without the interpreter's lock. Where a callback was interrupted, or a signal handler
  /// has raised an exception, raises that one in place of the library's.
  template <class Body>
  void run(const Body& body) const {
    try {
      const nb::gil_scoped_release released;
      body();
    } catch (...) {
      raise_of_signal();
      raise_interrupt();
      throw;
    }
    if (signal_raised) raise_of_signal();
    raise_interrupt();  // refuse() throws nothing, nor what a callback was interrupted by
  }

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
    std::shared_ptr<Interrupt> interrupt;  ///< null for a communicator without Python callbacks
    bool open;
  };
  void raise_interrupt() const;

  std::shared_ptr<State> state_;
};

}  // namespace cpnsa::python
